"""Asks ONNX for the shapes of tensors that operations outside of the table compute. `importer` calls it.

So a network with one unknown operation keeps its layers above that operation.
"""

from collections.abc import Mapping

import onnx
import onnx.shape_inference
import torch
from google.protobuf.message import EncodeError

KnownShapes = Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]]
"""The type and the shape of each tensor. A size that depends on the batch is None."""

_LARGEST_COPIED_WEIGHT = 1024
"""Weights of more elements are replaced by their shapes. Sizes and axes have fewer elements, and keep their values."""


def inferred_shapes(model: onnx.ModelProto) -> KnownShapes:
    """Returns what ONNX's shape inference knows about the model's tensors. Nothing if it fails."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if _elements(tensor) <= _LARGEST_COPIED_WEIGHT:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except (onnx.shape_inference.InferenceError, EncodeError, ValueError, RuntimeError):
        return {}
    return {
        value.name: (_dtype(value.type.tensor_type.elem_type), _sizes(value))
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)


def _dtype(number: int) -> torch.dtype:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    if number in floats:
        return torch.float32
    return torch.bool if number == onnx.TensorProto.BOOL else torch.int64
