"""This module opens sessions of ONNX Runtime that return any tensor of a model. Checks of graphs call it."""

from collections.abc import Sequence

import onnxruntime
from onnx import ModelProto, helper
from zfserve_model.graph.errors import GraphError


def open_session(model: ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """Opens a session on the CPU whose outputs include `tensors`.

    Raises:
        GraphError: ONNX Runtime cannot load the model.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    declared = {output.name for output in probe.graph.output}
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors if name not in declared)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class below Exception
        raise GraphError(f"ONNX Runtime cannot load the network: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Returns the first line of an error of ONNX Runtime, at most 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
