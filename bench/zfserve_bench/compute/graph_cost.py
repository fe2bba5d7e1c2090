"""Counts the floating-point operations and the bytes of an ONNX graph. The benchmark `engines` calls it."""

import math
from dataclasses import dataclass
from pathlib import Path

import onnx

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class GraphCost:
    """Holds the least work that a network needs.

    Attributes:
        image_flops: the multiplications and additions of the convolutions and matrix products, for one photo.
        image_bytes: the bytes of a photo and of its outputs. Intermediate values need not leave the caches.
        weight_bytes: the bytes of the weights as the graph stores them. Each batch reads them once.
    """

    image_flops: int
    image_bytes: int
    weight_bytes: int

    def batch_flops(self, size: int) -> int:
        return self.image_flops * size

    def batch_bytes(self, size: int) -> int:
        return self.weight_bytes + self.image_bytes * size

    def min_s(self, size: int, flops_per_s: float, bytes_per_s: float) -> float:
        """Returns the least time in seconds of a batch on a machine with these peaks.

        Arithmetic and memory work at the same time: this is the roofline of Williams et al. (2009).
        """
        return max(self.batch_flops(size) / flops_per_s, self.batch_bytes(size) / bytes_per_s)


def count_cost(file: Path) -> GraphCost:
    """Counts the cost of a graph with a dynamic first axis."""
    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes: Shapes = {
        name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim) for name, value in values.items()
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return GraphCost(
        image_flops=sum(2 * _multiplications(node, shapes) for node in graph.node),
        image_bytes=sum(
            math.prod(shapes[value.name]) * _item_bytes(value.type.tensor_type.elem_type)
            for value in (*graph.input, *graph.output)
        ),
        weight_bytes=sum(math.prod(tensor.dims) * _item_bytes(tensor.data_type) for tensor in graph.initializer),
    )


def _multiplications(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Returns the multiplications of a node for one photo; 0 if it is neither a convolution nor a matrix product."""
    if node.op_type == "Conv":
        # Each value of the output is a sum over one filter: (channels in / groups) x height x width.
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("Gemm", "MatMul"):
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]
    return 0


def _item_bytes(element_type: int) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize
