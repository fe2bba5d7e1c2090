"""Asks ONNX for the shapes of tensors that operations outside of the table compute. `importer` calls it.

So a network with one unknown operation keeps its layers above that operation. ONNX is asked about one operation at a
time: over a whole graph it follows the values of integers too, and a hostile file can make these take gigabytes.
"""

from collections.abc import Mapping

import onnx
import onnx.shape_inference
import torch
from google.protobuf.message import EncodeError
from torch import Tensor

from zfserve_model.graph.graph import Node

_LARGEST_COPIED_CONSTANT = 1024
"""Larger constants are told by their shape alone. Sizes and axes have fewer elements, and keep their values."""

_NUMBERS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
}


class NodeInference:
    """Finds the shapes of the outputs of single operations of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._ir_version = model.ir_version
        self._opsets = list(model.opset_import)
        self._nodes = {node.output[0]: node for node in model.graph.node if node.output}

    def outputs(self, node: Node, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs of a node whose shapes ONNX knows, as tensors without values.

        Args:
            node: a node of the model's graph. Nothing is known about the nodes of its branches.
            inputs: the node's inputs by name. Those on `meta` have no values.
        """
        proto = self._nodes.get(node.outputs[0]) if node.outputs else None
        if proto is None:
            return {}
        alone = onnx.ModelProto(ir_version=self._ir_version, opset_import=self._opsets)
        alone.graph.node.append(proto)
        for name, tensor in inputs.items():
            if tensor.is_meta or tensor.numel() > _LARGEST_COPIED_CONSTANT:
                kind, shape = _NUMBERS[tensor.dtype], list(tensor.shape)
                alone.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
            else:
                alone.graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
        alone.graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output if name)
        try:
            inferred = onnx.shape_inference.infer_shapes(alone)
        except (onnx.shape_inference.InferenceError, EncodeError, ValueError, RuntimeError):
            return {}
        return {value.name: found for value in inferred.graph.output if (found := _empty(value)) is not None}


def _empty(value: onnx.ValueInfoProto) -> Tensor | None:
    """Returns a tensor of the declared shape without values. None if a size is unknown."""
    kind = value.type.tensor_type
    sizes = [dim.dim_value for dim in kind.shape.dim]
    if not kind.HasField("shape") or not all(0 < size < 2**40 for size in sizes):
        return None
    try:
        return torch.empty(sizes, dtype=_dtype(kind.elem_type), device="meta")
    except RuntimeError:  # more elements than 64 bits count
        return None


def _dtype(number: int) -> torch.dtype:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    if number in floats:
        return torch.float32
    return torch.bool if number == onnx.TensorProto.BOOL else torch.int64
