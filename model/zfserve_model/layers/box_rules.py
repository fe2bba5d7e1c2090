"""Maps boxes in an operation's output back to boxes in its inputs.

Each unit in a box depends on units in the boxes that are returned here, and on no others. `receptive_field` calls this
module for one operation after the other.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from zfserve_model.graph.graph import Graph, Node
from zfserve_model.graph.pointwise import ACTIVATIONS, ARITHMETIC
from zfserve_model.layers import box_moves
from zfserve_model.layers.boxes import Boxes, Indices, Step, span

Rule = Callable[[Step, Boxes], Boxes]


def input_boxes(
    graph: Graph, node: Node, output: str, boxes: Boxes, *, clip: bool = True
) -> Iterator[tuple[int, Boxes]]:
    """Yields the index and the boxes of each input that is no constant. Without `clip` boxes may reach into padding."""
    rule, empty = RULES.get(node.operation, _whole), boxes.is_empty()
    for index, name in enumerate(node.inputs):
        if name in graph.shapes:
            step = Step(graph, node, output, index, clip)
            below = rule(step, boxes).emptied(empty).normalised()
            yield index, below.clip(step.shape) if clip else below


def _whole(step: Step, boxes: Boxes) -> Boxes:
    """Returns the whole input. No operation reads more; most read less, and have a rule of their own."""
    return span(boxes, step.shape, tuple(range(len(step.shape))))


def _elementwise(step: Step, boxes: Boxes) -> Boxes:
    """Aligns the last axes. An axis of length 1 is broadcast."""
    rank = len(step.shape)
    broadcast = np.array(step.shape) == 1
    return Boxes(
        np.where(broadcast, 0, boxes.starts[:, len(step.output_shape) - rank :]),
        np.where(broadcast, 1, boxes.stops[:, len(step.output_shape) - rank :]),
    )


def _pool(step: Step, boxes: Boxes) -> Boxes:
    return _slide(step, boxes, step.integers("kernel_shape", []))


def _slide(step: Step, boxes: Boxes, kernel: list[int]) -> Boxes:
    """Slides a window over all axes but the first two. Unit i reads at i * stride - pad + k * dilation, k < kernel."""
    ones = [1] * len(kernel)
    strides, dilations = step.integers("strides", ones), step.integers("dilations", ones)
    pads = _padding_before(step, kernel, strides, dilations)
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    for axis, (width, stride, dilation, pad) in enumerate(zip(kernel, strides, dilations, pads, strict=True), start=2):
        first, last = starts[:, axis] * stride - pad, (stops[:, axis] - 1) * stride - pad
        places = np.arange(width)[:, None] * dilation
        if step.clip:
            starts[:, axis], stops[:, axis] = _places_inside(first + places, last + places, stride, step.shape[axis])
        else:
            starts[:, axis], stops[:, axis] = first, last + (width - 1) * dilation + 1
    return Boxes(starts, stops)


def _places_inside(first: Indices, last: Indices, stride: int, size: int) -> tuple[Indices, Indices]:
    """Returns the bounds of all places in [0, size) on the way from `first` to `last` in steps of `stride`.

    With dilation, the place that a kernel reads first inside of a map need not be the edge of the map.

    Args:
        first, last: the places that the first and the last unit of each box read, int64 (kernel, n).
    """
    lowest = first + np.maximum(-(first // stride), 0) * stride
    highest = last - np.maximum(-((size - 1 - last) // stride), 0) * stride
    starts = np.where((lowest <= last) & (lowest < size), lowest, size).min(axis=0)
    stops = np.where((highest >= first) & (highest >= 0), highest, -1).max(axis=0) + 1
    return starts, stops


def _padding_before(step: Step, kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    match step.node.attributes.get("auto_pad", "NOTSET"):
        case "NOTSET":
            return step.integers("pads", [0] * 2 * len(kernel))[: len(kernel)]
        case "VALID":
            return [0] * len(kernel)
        case mode:
            before = []
            for size, width, stride, dilation in zip(step.shape[2:], kernel, strides, dilations, strict=True):
                total = max((math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
                before.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
            return before


def _convolution(step: Step, boxes: Boxes) -> Boxes:
    weight, groups = step.constant(1), step.integer("group", 1)
    if weight is None:
        return _whole(step, boxes)
    below = _slide(step, boxes, list(weight.shape[2:]))
    return _grouped(below, groups, weight.shape[0] // groups, weight.shape[1])


def _transposed_convolution(step: Step, boxes: Boxes) -> Boxes:
    """Returns the units whose kernels reach the box. Unit i writes to i * stride - pad + k * dilation."""
    weight, groups = step.constant(1), step.integer("group", 1)
    if weight is None or step.node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return _whole(step, boxes)
    kernel = np.array(weight.shape[2:])
    ones = [1] * len(kernel)
    strides, dilations = np.array(step.integers("strides", ones)), np.array(step.integers("dilations", ones))
    pads = np.array(step.integers("pads", [0] * 2 * len(kernel))[: len(kernel)])
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    starts[:, 2:] = -((-(starts[:, 2:] + pads - (kernel - 1) * dilations)) // strides)
    stops[:, 2:] = (stops[:, 2:] - 1 + pads) // strides + 1
    return _grouped(Boxes(starts, stops), groups, weight.shape[1], weight.shape[0] // groups)


def _grouped(boxes: Boxes, groups: int, outputs: int, inputs: int) -> Boxes:
    """Replaces output channels by the input channels of their groups. A group has `outputs` and `inputs` channels."""
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    starts[:, 1] = np.clip(starts[:, 1] // outputs, 0, groups - 1) * inputs
    stops[:, 1] = (np.clip((stops[:, 1] - 1) // outputs, 0, groups - 1) + 1) * inputs
    return Boxes(starts, stops)


def _global_pool(step: Step, boxes: Boxes) -> Boxes:
    return span(boxes, step.shape, tuple(range(2, len(step.shape))))


def _local_response(step: Step, boxes: Boxes) -> Boxes:
    before = step.integer("before", (step.integer("size", 1) - 1) // 2)
    after = step.integer("size", 1) - 1 - before
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    starts[:, 1] = np.maximum(starts[:, 1] - before, 0)
    stops[:, 1] = np.minimum(stops[:, 1] + after, step.shape[1])
    return Boxes(starts, stops)


def _instance_norm(step: Step, boxes: Boxes) -> Boxes:
    return span(boxes, step.shape, tuple(range(2, len(step.shape))))


def _group_norm(step: Step, boxes: Boxes) -> Boxes:
    return span(boxes, step.shape, tuple(range(1, len(step.shape))))


def _layer_norm(step: Step, boxes: Boxes) -> Boxes:
    rank = len(step.shape)
    return span(boxes, step.shape, tuple(range(step.integer("axis", -1) % rank, rank)))


def _softmax(step: Step, boxes: Boxes) -> Boxes:
    return span(boxes, step.shape, (step.integer("axis", -1) % len(step.shape),))


def _reduce(step: Step, boxes: Boxes) -> Boxes:
    rank = len(step.shape)
    axes = tuple(axis % rank for axis in step.integers("axes", list(range(rank)), index=1))
    if len(step.output_shape) == rank:
        return span(boxes, step.shape, axes)
    starts = np.zeros((len(boxes.starts), rank), np.int64)
    stops = starts + 1
    kept = [axis for axis in range(rank) if axis not in axes]
    starts[:, kept], stops[:, kept] = boxes.starts, boxes.stops
    return span(Boxes(starts, stops), step.shape, axes)


def _matrix_product(step: Step, boxes: Boxes) -> Boxes:
    """Spreads over the axis that is summed."""
    if step.index != 0 or step.constant(1) is None or len(step.output_shape) != len(step.shape):
        return _whole(step, boxes)
    return span(boxes, step.shape, (len(step.shape) - 1,))


NORMS = ("BatchNormalization", "LRN", "LayerNormalization", "GroupNormalization", "InstanceNormalization")

RULES: dict[str, Rule] = {
    **dict.fromkeys((*ACTIVATIONS, *ARITHMETIC, "Expand", "UnnamedActivation"), _elementwise),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin", "ReduceL2"), _reduce),
    **dict.fromkeys(("Gemm", "MatMul"), _matrix_product),
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "LRN": _local_response,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
    **box_moves.RULES,
}
"""The rule of each operation. An operation without a rule reads its whole input."""
