"""Computes which input pixels a unit sees, by walking back over the graph with one box a tensor.

A branch takes the hull of its consumers' boxes. This is exact for residual, dense, inception, dilated and asymmetric
networks, where a formula for chains (Araujo et al., Distill 2019) is not. The layer table and the deconvnet call it.

A unit can see pixels in two ways. Its *direct* field is what it reads through convolutions and pools. Gates, such as
squeeze-and-excitation, and the statistics of layer, group and instance norm add more, often the whole image. A
projection treats both as constants, so its signal stays in the direct field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from zfserve_model.explanation.rules import RULES, passage
from zfserve_model.graph.graph import Graph
from zfserve_model.layers.box_rules import input_boxes
from zfserve_model.layers.boxes import Boxes

Paths = Literal["direct", "all"]


@dataclass(frozen=True)
class Region:
    """Holds the rows and the columns of a region of a tensor. Both are empty where no unit is in it."""

    rows: range
    columns: range


@dataclass(frozen=True)
class Pitch:
    """Describes the fields of all units of a layer along one axis of the image. Padding counts.

    Unit i sees no pixel outside of `offset + i * stride` up to, but not including, `offset + i * stride + size`. In
    networks without a resize it sees exactly these pixels.
    """

    size: int
    stride: int
    offset: int


def field(
    graph: Graph, tensor: str, rows: range, columns: range, maps: range | None = None, paths: Paths = "direct"
) -> dict[str, Region]:
    """Returns the region of each tensor below `tensor` that the units at `rows` and `columns` depend on.

    Regions are clipped to their tensors at every step, so padding is not in them. Tensors that are not
    (1, channels, height, width) are left out. `graph.input` has the region of the image. Direct fields end at a node
    that no projection can pass.

    Args:
        tensor: a tensor of shape (1, channels, height, width).
        maps: the feature maps that count, in the range of the channels. None stands for all.
        paths: "direct" for the field of a projection, "all" for everything that changes the units.
    """
    maps = range(graph.shapes[tensor][1]) if maps is None else maps
    return {
        name: Region(_range(boxes, 2), _range(boxes, 3))
        for name, boxes in _walk_back(graph, {tensor: _boxes(rows, columns, maps)}, paths, clip=True).items()
        if len(graph.shapes[name]) == 4
    }


def pitches(graph: Graph, tensors: Sequence[str]) -> list[tuple[Pitch, Pitch]]:
    """Returns the direct fields of all units of each tensor, along rows and columns.

    Args:
        tensors: tensors of shape (1, channels, height, width) that can be projected.
    """
    # Unit k of the diagonal shows row k and column k. There are at least two, so that the stride can be seen.
    units = [
        [(range(k, k + 1), range(k, k + 1)) for k in range(max(2, *graph.shapes[tensor][2:]))] for tensor in tensors
    ]
    return [
        (_pitch(seen, 2, graph.shapes[tensor][2]), _pitch(seen, 3, graph.shapes[tensor][3]))
        for tensor, seen in zip(tensors, _seen(graph, tensors, units, "direct", clip=False), strict=True)
    ]


def see_whole_image(graph: Graph, tensors: Sequence[str]) -> list[bool]:
    """Returns True for each tensor, (1, channels, height, width), whose units all depend on all pixels that any reads.

    These are the whole image, but for the few last pixels that a stride may leave out.
    """
    units = []
    for tensor in tensors:
        _, _, height, width = graph.shapes[tensor]
        last = range(height - 1, height), range(width - 1, width)
        units.append([(range(1), range(1)), last, (range(height), range(width))])
    return [
        bool((seen.starts == seen.starts[0]).all() and (seen.stops == seen.stops[0]).all())
        for seen in _seen(graph, tensors, units, "all", clip=True)
    ]


def _seen(
    graph: Graph, tensors: Sequence[str], units: Sequence[Sequence[tuple[range, range]]], paths: Paths, *, clip: bool
) -> list[Boxes]:
    """Returns the boxes of the image that the units of each tensor see. One walk serves all tensors."""
    if not tensors:
        return []
    counts = [len(each) for each in units]
    first = np.cumsum([0, *counts])
    targets: dict[str, Boxes] = {}
    for place, (tensor, each) in enumerate(zip(tensors, units, strict=True)):
        own = [_boxes(rows, columns, range(graph.shapes[tensor][1])) for rows, columns in each]
        spread = targets.get(tensor, Boxes.empty(first[-1], rank=4))
        spread.starts[first[place] : first[place + 1]] = np.concatenate([boxes.starts for boxes in own])
        spread.stops[first[place] : first[place + 1]] = np.concatenate([boxes.stops for boxes in own])
        targets[tensor] = spread
    image = _walk_back(graph, targets, paths, clip=clip)[graph.input]
    return [Boxes(image.starts[start:stop], image.stops[start:stop]) for start, stop in pairwise(first)]


def _boxes(rows: range, columns: range, maps: range) -> Boxes:
    spans = (range(1), maps, rows, columns)
    return Boxes(np.array([[each.start for each in spans]]), np.array([[each.stop for each in spans]]))


def _range(boxes: Boxes, axis: int) -> range:
    start, stop = int(boxes.starts[0, axis]), int(boxes.stops[0, axis])
    return range(start, stop) if start < stop else range(0)


def _pitch(boxes: Boxes, axis: int, units: int) -> Pitch:
    starts, stops = boxes.starts[: max(units, 2), axis], boxes.stops[: max(units, 2), axis]
    # Behind an upsampled branch, several neighbours see the same pixels. So the fields are steps, and a line fits them.
    slope, _ = np.polyfit(np.arange(len(starts)), (starts + stops) / 2, 1)
    stride = round(float(slope))
    steps = stride * np.arange(len(starts))
    offset = int((starts - steps).min())
    return Pitch(int((stops - steps).max()) - offset, stride, offset)


def _walk_back(graph: Graph, targets: Mapping[str, Boxes], paths: Paths, *, clip: bool) -> dict[str, Boxes]:
    """Returns the boxes in each tensor that the boxes of `targets`, by tensor, depend on. All have the same length."""
    found = dict(targets)
    for node in reversed(graph.nodes):
        outputs = [output for output in node.outputs if output in found]
        if not outputs:
            continue
        direct = paths == "direct"
        followed: Sequence[int] = range(len(node.inputs))
        if direct:
            node, followed = passage(graph, node)
        # A projection passes over a norm, so its signal does not spread to what the norm's statistics see.
        passed_over = direct and followed and RULES[node.operation].kind == "pass over"
        step = replace(node, operation="Identity") if passed_over else node
        for output in outputs:
            for index, below in input_boxes(graph, step, output, found[output], clip=clip):
                if index in followed:
                    name = node.inputs[index]
                    found[name] = found[name].hull(below) if name in found else below
    return found
