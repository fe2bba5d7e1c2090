"""Builds small ONNX models for tests, and runs them in ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]


def node(operation: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operation, list(inputs), list(outputs), **attributes)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[np.generic]] | None = None,
    shape: Sequence[int | str] = ("N", 3, 8, 8),
    opset: int = 20,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """Returns a model with the float input `x` of the given shape. The shapes of its outputs are unknown."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 20 else 10)


def run_onnx_runtime(model: onnx.ModelProto, images: Array) -> Array:
    """Returns the model's first output, as ONNX Runtime computes it without optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {session.get_inputs()[0].name: images})[0]
    return result
