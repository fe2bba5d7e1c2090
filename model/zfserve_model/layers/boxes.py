"""Defines boxes of units. The rules in `box_rules` and `box_moves` map them back through one operation."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from zfserve_model.graph.graph import Graph, Node

Indices = npt.NDArray[np.int64]
_FAR = 2**40
"""The start of an empty box, and minus its stop. The hull of an empty box and another box is then the other box."""


class Boxes(NamedTuple):
    """Holds n boxes in one tensor. A box is a range of indices along every axis.

    Attributes:
        starts, stops: int64 (n, rank). Index i along axis a lies in box k if starts[k, a] <= i < stops[k, a].
    """

    starts: Indices
    stops: Indices

    @staticmethod
    def empty(count: int, rank: int) -> "Boxes":
        """Returns `count` boxes without units."""
        return Boxes(np.full((count, rank), _FAR), np.full((count, rank), -_FAR))

    def hull(self, other: "Boxes") -> "Boxes":
        """Returns the smallest boxes that contain both."""
        return Boxes(np.minimum(self.starts, other.starts), np.maximum(self.stops, other.stops))

    def clip(self, shape: tuple[int, ...]) -> "Boxes":
        """Returns the part of each box that lies inside of a tensor of `shape`."""
        return Boxes(np.maximum(self.starts, 0), np.minimum(self.stops, np.array(shape, np.int64))).normalised()

    def normalised(self) -> "Boxes":
        """Returns the same boxes, with all empty boxes alike."""
        return self.emptied(self.is_empty())

    def emptied(self, empty: npt.NDArray[np.bool_]) -> "Boxes":
        """Returns the boxes, with those where `empty` (n,) is True replaced by empty boxes."""
        return Boxes(np.where(empty[:, None], _FAR, self.starts), np.where(empty[:, None], -_FAR, self.stops))

    def is_empty(self) -> npt.NDArray[np.bool_]:
        """Returns True for each box without units, bool (n,)."""
        empty: npt.NDArray[np.bool_] = np.any(self.stops <= self.starts, axis=1)
        return empty


@dataclass(frozen=True)
class Step:
    """Describes how one operation reads one of its inputs.

    Attributes:
        output: the name of the output that the boxes lie in.
        index: the place of the input among the node's inputs.
        clip: True to leave padding out of the boxes of the input.
    """

    graph: Graph
    node: Node
    output: str
    index: int
    clip: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.graph.shapes[self.node.inputs[self.index]]

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.graph.shapes[self.output]

    def constant(self, index: int) -> Tensor | None:
        """Returns the constant at the input `index`. None where the input is left out or depends on the image."""
        return self.graph.constants.get(self.node.inputs[index]) if index < len(self.node.inputs) else None

    def integer(self, name: str, default: int) -> int:
        value = self.node.attributes.get(name, default)
        assert isinstance(value, int)
        return value

    def integers(self, name: str, default: list[int], index: int | None = None) -> list[int]:
        """Returns the attribute `name`, or else the constant at the input `index`, or else `default`."""
        value = self.node.attributes.get(name)
        if value is None and index is not None:
            value = self.constant(index)
        if value is None:
            return default
        if isinstance(value, Tensor):
            value = value.flatten().tolist()
        assert isinstance(value, list | tuple)
        return [int(number) for number in value]


def span(boxes: Boxes, shape: tuple[int, ...], axes: tuple[int, ...]) -> Boxes:
    """Returns boxes in a tensor of `shape` that cover `axes` wholly, and equal `boxes` along the other axes."""
    starts = np.zeros((len(boxes.starts), len(shape)), np.int64)
    stops = starts + np.array(shape, np.int64)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    starts[:, kept], stops[:, kept] = boxes.starts[:, kept], boxes.stops[:, kept]
    return Boxes(starts, stops)
