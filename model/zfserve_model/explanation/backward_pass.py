"""Carries the signals of many units from a tensor of a graph down to the pixels. `deconvnet` calls it.

The boxes of all units are computed first, for every tensor on the way. Then the signals go down, node by node. Where
the signals of a batch would grow past the memory limit, the batch is divided, and each part goes on to the pixels by
itself. Near the layer boxes are small and filters large, so it pays to read the filters once for all units. Near the
pixels boxes are large and filters small, and few signals at a time stay in the processor's cache.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from zfserve_model.explanation.rules import RULES, path_below
from zfserve_model.explanation.signals import Frame, Signal, frame_boxes
from zfserve_model.graph.graph import Graph
from zfserve_model.layers.box_rules import input_boxes
from zfserve_model.layers.boxes import Boxes, Step


class Descent(NamedTuple):
    """Holds the way down from one tensor.

    Attributes:
        graph: the network.
        nodes: the steps of each node on the way, the highest node first. A step leads from one output to one input.
        boxes: the boxes of all units by tensor, clipped to the tensors.
        kept: what the forward pass kept for a node, by the name of its first output.
        memory_bytes: the limit of the signals that are alive at once. A signal may be larger by itself.
    """

    graph: Graph
    nodes: list[list[Step]]
    boxes: dict[str, Boxes]
    kept: Mapping[str, Tensor]
    memory_bytes: int


def plan_descent(graph: Graph, tensor: str, units: Boxes, kept: Mapping[str, Tensor], memory_bytes: int) -> Descent:
    """Returns the way down from `units`, boxes in `tensor`. No node may be in the way (`projection_rule`)."""
    boxes, nodes = {tensor: units}, []
    for node, inputs in path_below(graph, tensor):
        # A norm is passed over, so a signal does not spread to what the norm's statistics see.
        seen = replace(node, operation="Identity") if RULES[node.operation].kind == "pass over" else node
        steps = []
        for output in node.outputs:
            if output not in boxes:
                continue
            for index, below in input_boxes(graph, seen, output, boxes[output]):
                if index in inputs:
                    name = node.inputs[index]
                    boxes[name] = boxes[name].hull(below) if name in boxes else below
                    steps.append(Step(graph, node, output, index))
        nodes.append(steps)
    boxes[graph.input] = _pictures(boxes[graph.input], graph.shapes[graph.input][1])
    return Descent(graph, nodes, boxes, kept, memory_bytes)


def _pictures(pixels: Boxes, channels: int) -> Boxes:
    """Returns boxes with all channels, also above a depthwise first layer, and with at least one pixel."""
    empty = pixels.is_empty()[:, None]
    starts, stops = np.where(empty, 0, pixels.starts), np.where(empty, 1, pixels.stops)
    starts[:, 1], stops[:, 1] = 0, channels
    return Boxes(starts, stops)


def descend(descent: Descent, tensor: str, signal: Signal) -> Iterator[Signal]:
    """Yields the signal of each unit in the network's input, in the order of the units.

    Args:
        signal: the signals of all units in `tensor`.
    """
    return _descend(descent, 0, range(len(signal)), {tensor: signal})


def _descend(descent: Descent, position: int, units: range, signals: dict[str, Signal]) -> Iterator[Signal]:
    """Carries the signals of some of the units from the node at `position` down."""
    chosen = slice(units.start, units.stop)
    for depth in range(position, len(descent.nodes)):
        steps = descent.nodes[depth]
        frames = {step.node.inputs[step.index]: _frame(descent, step.node.inputs[step.index], chosen) for step in steps}
        share = _share(descent, frames, signals)
        if share < len(units):
            for begin in range(0, len(units), share):
                part = slice(begin, begin + share)
                yield from _descend(descent, depth, units[part], _take(descent, signals, part, units[part]))
            return
        for step in steps:
            name = step.node.inputs[step.index]
            below = RULES[step.node.operation].step(step, signals[step.output], descent.kept.get(step.node.outputs[0]))
            below = below.fitted(frames[name])
            signals[name] = signals[name] + below if name in signals else below
        for step in steps:
            signals.pop(step.output, None)
    pixels = signals[descent.graph.input]
    for row, unit in enumerate(units):
        one = slice(row, row + 1)
        yield pixels.take(one).fitted(_frame(descent, descent.graph.input, slice(unit, unit + 1)))


def _frame(descent: Descent, name: str, units: slice) -> Frame:
    boxes = descent.boxes[name]
    return frame_boxes(Boxes(boxes.starts[units], boxes.stops[units]), descent.graph.shapes[name])


def _take(descent: Descent, signals: dict[str, Signal], part: slice, units: range) -> dict[str, Signal]:
    """Returns the signals of some of the units, each in the smallest box that their frame allows."""
    chosen = slice(units.start, units.stop)
    return {name: signal.take(part).fitted(_frame(descent, name, chosen)) for name, signal in signals.items()}


def _share(descent: Descent, frames: dict[str, Frame], signals: dict[str, Signal]) -> int:
    """Returns how many units can take the next step together, at least 1."""
    per_unit = sum(math.prod(frame.sizes) for frame in frames.values())
    per_unit += sum(math.prod(signal.values.shape[1:]) for signal in signals.values())
    size = next(iter(signals.values())).values.element_size()
    return max(1, descent.memory_bytes // (per_unit * size))
