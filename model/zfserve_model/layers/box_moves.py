"""Maps boxes back through operations that only move values, such as Transpose, Reshape, Concat, Slice and Resize.

`box_rules` adds these rules to its own.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from zfserve_model.layers.boxes import Boxes, Indices, Step, span


def _transpose(step: Step, boxes: Boxes) -> Boxes:
    source = np.argsort(step.integers("perm", list(range(len(step.shape)))[::-1]))
    return Boxes(boxes.starts[:, source], boxes.stops[:, source])


def _reshape(step: Step, boxes: Boxes) -> Boxes:
    """Regroups axes. Groups of axes with the same number of elements correspond, and the order of units stays."""
    inside = boxes.clip(step.output_shape)
    starts = np.zeros((len(boxes.starts), len(step.shape)), np.int64)
    stops = starts + 1
    for above, below in _axis_groups(step.output_shape, step.shape):
        if len(above) == len(below) == 1:
            starts[:, below], stops[:, below] = boxes.starts[:, above], boxes.stops[:, above]
        else:
            first, last = _flatten(inside, step.output_shape, above)
            starts[:, below], stops[:, below] = _unflatten(first, last, [step.shape[axis] for axis in below])
    return Boxes(starts, stops).emptied(inside.is_empty())


def _axis_groups(above: tuple[int, ...], below: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the smallest groups of neighbouring axes that have the same number of elements in both shapes."""
    axes_above = [axis for axis, size in enumerate(above) if size != 1]
    axes_below = [axis for axis, size in enumerate(below) if size != 1]
    while axes_above and axes_below:
        ours, theirs = [axes_above.pop(0)], [axes_below.pop(0)]
        while (size := np.prod([above[axis] for axis in ours])) != (other := np.prod([below[axis] for axis in theirs])):
            if size < other:
                ours.append(axes_above.pop(0))
            else:
                theirs.append(axes_below.pop(0))
        yield ours, theirs


def _flatten(boxes: Boxes, shape: tuple[int, ...], axes: list[int]) -> tuple[Indices, Indices]:
    """Returns the first and the last index of each box, counted over `axes` row by row."""
    first = last = np.zeros(len(boxes.starts), np.int64)
    for axis in axes:
        first, last = first * shape[axis] + boxes.starts[:, axis], last * shape[axis] + boxes.stops[:, axis] - 1
    return first, last


def _unflatten(first: Indices, last: Indices, sizes: list[int]) -> tuple[Indices, Indices]:
    """Returns the hull of the indices from `first` to `last`, over axes of `sizes`."""
    starts, stops = [], []
    for size in reversed(sizes):
        wraps = first // size != last // size
        starts.append(np.where(wraps, 0, first % size))
        stops.append(np.where(wraps, size, last % size + 1))
        first, last = first // size, last // size
    return np.stack(starts[::-1], axis=1), np.stack(stops[::-1], axis=1)


def _concat(step: Step, boxes: Boxes) -> Boxes:
    axis = step.integer("axis", 0) % len(step.shape)
    before = sum(_length(step, name, axis) for name in step.node.inputs[: step.index])
    return _piece(boxes, axis, before, step.shape[axis])


def _length(step: Step, name: str, axis: int) -> int:
    constant = step.graph.constants.get(name)
    return step.graph.shapes[name][axis] if constant is None else constant.shape[axis]


def _piece(boxes: Boxes, axis: int, first: int, length: int) -> Boxes:
    """Returns the part of each box in one piece of the output, counted from the start of this piece."""
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    starts[:, axis] = np.maximum(starts[:, axis] - first, 0)
    stops[:, axis] = np.minimum(stops[:, axis] - first, length)
    return Boxes(starts, stops)


def _split(step: Step, boxes: Boxes) -> Boxes:
    axis = step.integer("axis", 0) % len(step.shape)
    before = step.node.outputs[: step.node.outputs.index(step.output)]
    return _shift(boxes, {axis: sum(step.graph.shapes[name][axis] for name in before)})


def _shift(boxes: Boxes, shifts: dict[int, int]) -> Boxes:
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    for axis, shift in shifts.items():
        starts[:, axis] += shift
        stops[:, axis] += shift
    return Boxes(starts, stops)


def _slice(step: Step, boxes: Boxes) -> Boxes:
    """Unit i is the unit begin + i * pace of the input. The pace is negative where an axis is flipped."""
    begins, ends = step.integers("starts", [], index=1), step.integers("ends", [], index=2)
    axes = step.integers("axes", list(range(len(begins))), index=3)
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    for begin, end, axis, pace in zip(
        begins, ends, axes, step.integers("steps", [1] * len(begins), index=4), strict=True
    ):
        size = step.shape[axis]
        taken = range(size)[slice(begin, None if pace < 0 and end < -size else end, pace)]
        first, last = (taken.start + index * pace for index in (boxes.starts[:, axis], boxes.stops[:, axis] - 1))
        starts[:, axis], stops[:, axis] = np.minimum(first, last), np.maximum(first, last) + 1
    return Boxes(starts, stops)


def _pad(step: Step, boxes: Boxes) -> Boxes:
    pads = step.integers("pads", [], index=1)
    axes = [axis % len(step.shape) for axis in step.integers("axes", list(range(len(pads) // 2)), index=3)]
    before, after = pads[: len(axes)], pads[len(axes) :]
    mode = step.node.attributes.get("mode", "constant")
    if mode == "constant":
        return _shift(boxes, dict(zip(axes, (-pad for pad in before), strict=True)))
    for axis, low, high in zip(axes, before, after, strict=True):
        if low or high:
            sources = np.pad(np.arange(step.shape[axis]), (low, high), mode=mode)  # type: ignore[call-overload]
            boxes = _sources(boxes, axis, sources)
    return boxes


def _gather(step: Step, boxes: Boxes) -> Boxes:
    """Reads a fixed list of places, for example channels in another order."""
    axis, places = step.integer("axis", 0) % len(step.shape), step.constant(1)
    if step.index != 0 or places is None or places.ndim != 1:
        return span(boxes, step.shape, tuple(range(len(step.shape))))
    return _sources(boxes, axis, places.numpy() % step.shape[axis])


def _sources(boxes: Boxes, axis: int, sources: npt.NDArray[np.int64]) -> Boxes:
    """Returns the hull of `sources[i]` over each index i of the box along `axis`."""
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    for number, (start, stop) in enumerate(zip(boxes.starts[:, axis], boxes.stops[:, axis], strict=True)):
        inside = sources[max(start, 0) : max(stop, 0)]
        starts[number, axis], stops[number, axis] = (inside.min(), inside.max() + 1) if inside.size else (0, 0)
    return Boxes(starts, stops)


def _resize(step: Step, boxes: Boxes) -> Boxes:
    """Interpolates along every axis whose length changes."""
    starts, stops = boxes.starts.copy(), boxes.stops.copy()
    for axis, (size, length) in enumerate(zip(step.shape, step.output_shape, strict=True)):
        if size != length:
            first = _neighbours(step, _coordinate(step, boxes.starts[:, axis], size, length))[0]
            last = _neighbours(step, _coordinate(step, boxes.stops[:, axis] - 1, size, length))[1]
            if step.clip:  # A place outside of the input reads the edge.
                first, last = np.clip(first, 0, size - 1), np.clip(last, 0, size - 1)
            starts[:, axis], stops[:, axis] = first, last + 1
    return Boxes(starts, stops)


def _coordinate(step: Step, index: Indices, size: int, length: int) -> npt.NDArray[np.float64]:
    """Returns the place in an axis of `size` that unit `index` of an axis of `length` reads (ONNX, Resize)."""
    match step.node.attributes.get("coordinate_transformation_mode", "half_pixel"):
        case "asymmetric":
            return index * size / length
        case "align_corners":
            return index * (size - 1) / max(length - 1, 1)
        case _:
            return (index + 0.5) * size / length - 0.5


def _neighbours(step: Step, place: npt.NDArray[np.float64]) -> tuple[Indices, Indices]:
    """Returns the first and the last unit that the interpolation reads for a place between units."""
    rounding = step.node.attributes.get("nearest_mode", "round_prefer_floor")
    match step.node.attributes.get("mode", "nearest"):
        case "linear":
            first, last = np.floor(place), np.ceil(place)
        case "cubic":
            first, last = np.floor(place) - 1, np.floor(place) + 2
        case _ if rounding == "floor":
            first = last = np.floor(place)
        case _ if rounding == "ceil":
            first = last = np.ceil(place)
        case _ if rounding == "round_prefer_ceil":
            first = last = np.floor(place + 0.5)
        case _:
            first = last = np.ceil(place - 0.5)
    return first.astype(np.int64), last.astype(np.int64)


RULES = {
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Resize": _resize,
    "Upsample": _resize,
}
