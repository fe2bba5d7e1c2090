"""This module folds constants and fuses batch norm into convolutions, before a graph is rounded. `exporter` calls it.

Rounding a convolution and its batch norm apart would lose accuracy, and shape arithmetic has no float16 form.
"""

import tempfile
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto
from zfserve_model.graph.errors import GraphError

from zfserve_export.onnx_edits import name_nodes


def optimized(model: ModelProto) -> ModelProto:
    """Returns an equal model as ONNX Runtime simplifies it, without operators of its own.

    Raises:
        GraphError: ONNX Runtime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="zfserve-optimize-") as scratch:
        options.optimized_model_filepath = str(Path(scratch, "optimized.onnx"))
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common class below Exception
            raise GraphError("ONNX Runtime cannot load the graph; export the network to ONNX again") from error
        simple = onnx.load(options.optimized_model_filepath)
    used = {node.domain for node in simple.graph.node}
    known = {node.domain for node in model.graph.node}
    if not used <= known:  # an operator of ONNX Runtime, which other engines do not have
        return model
    # ONNX Runtime lists every domain that it knows.
    opsets = [opset for opset in simple.opset_import if opset.domain in used]
    del simple.opset_import[:]
    simple.opset_import.extend(opsets)
    name_nodes(simple.graph)
    return simple
