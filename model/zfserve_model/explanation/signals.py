"""Defines the signals that a projection carries from a unit down to the pixels. Each is kept in a box of its tensor.

Outside of its box a signal is zero. So the cost of a projection follows the fields of its units, and not the sizes of
the tensors. Signals of several units travel in one batch, in boxes of one size at different places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zfserve_model.layers.boxes import Boxes, Indices


@dataclass(frozen=True)
class Frame:
    """Places n boxes of one size in one tensor.

    Attributes:
        starts: the first index of each box along every axis, int64 (n, rank). Axis 0 is the batch; its starts are 0.
        sizes: the size of the boxes along every axis but the first.
    """

    starts: Indices
    sizes: tuple[int, ...]


def frame_boxes(boxes: Boxes, shape: tuple[int, ...]) -> Frame:
    """Returns a frame inside of a tensor of `shape` that holds all of `boxes`, each in its own box."""
    empty = boxes.is_empty()[:, None]
    sizes = np.where(empty, 1, boxes.stops - boxes.starts).max(axis=0)
    starts = np.minimum(np.where(empty, 0, boxes.starts), np.array(shape) - sizes)
    return Frame(starts, tuple(sizes[1:].tolist()))


@dataclass(frozen=True)
class Signal:
    """Holds the signals of n units in one tensor.

    Attributes:
        values: float (n, ...), one signal in each row, of the same rank as the tensor.
        starts: the place of each row in the tensor: its first index along every axis, int64 (n, rank). Negative in the
            padding. Axis 0 is the batch; its starts are 0.
    """

    values: Tensor
    starts: Indices

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, units: slice) -> "Signal":
        """Returns the signals of some of the units."""
        return Signal(self.values[units], self.starts[units])

    def shifted(self, axis: int, distance: int) -> "Signal":
        """Returns the same values, moved by `distance` along `axis`."""
        starts = self.starts.copy()
        starts[:, axis] += distance
        return Signal(self.values, starts)

    def covers(self, shape: tuple[int, ...], axes: Sequence[int]) -> bool:
        """Returns True if every signal covers `axes` of a tensor of `shape` exactly."""
        sizes = self.values.shape
        return all(sizes[axis] == shape[axis] for axis in axes) and not self.starts[:, list(axes)].any()

    def spanning(self, shape: tuple[int, ...], axes: Sequence[int]) -> "Signal":
        """Returns the signals in boxes that cover `axes` of a tensor of `shape`."""
        if self.covers(shape, axes):
            return self
        starts, sizes = self.starts.copy(), list(self.values.shape[1:])
        for axis in axes:
            starts[:, axis], sizes[axis - 1] = 0, shape[axis]
        return self.fitted(Frame(starts, tuple(sizes)))

    def fitted(self, frame: Frame) -> "Signal":
        """Returns the signals in the boxes of `frame`: cropped, and filled up with zeros."""
        shifts, lengths = frame.starts - self.starts, np.array(self.values.shape[1:])
        first = shifts[0]
        if (shifts == first).all() and (first >= 0).all() and (first[1:] + frame.sizes <= lengths).all():
            return Signal(_crop(self.values, first[1:].tolist(), frame.sizes), frame.starts)
        values = self.values.new_zeros(len(shifts), *frame.sizes)
        alike = (shifts == first).all()
        for row, shift in enumerate(shifts[:1] if alike else shifts):
            rows = slice(None) if alike else slice(row, row + 1)
            source, target = [rows], [rows]
            for distance, length, size in zip(shift[1:].tolist(), lengths.tolist(), frame.sizes, strict=True):
                low, high = max(distance, 0), min(distance + size, length)
                source.append(slice(low, max(high, low)))
                target.append(slice(low - distance, max(high, low) - distance))
            values[tuple(target)] = self.values[tuple(source)]
        return Signal(values, frame.starts)

    def __add__(self, other: "Signal") -> "Signal":
        """Adds signals that lie in the same boxes."""
        return Signal(self.values + other.values, self.starts)


def cut(tensor: Tensor, signal: Signal) -> Tensor:
    """Returns what `tensor` holds in the boxes of `signal`, to be multiplied with its values.

    Args:
        tensor: aligned with the signal's tensor at the last axis. Axes of length 1 are broadcast, and axis 0 is one.
    """
    rank = signal.values.ndim
    tensor = tensor[(None,) * (rank - tensor.ndim)]
    axes = [
        axis for axis in range(1, rank) if tensor.shape[axis] > 1 and not signal.covers(tuple(tensor.shape), [axis])
    ]
    if not axes:
        return tensor
    starts, sizes = signal.starts[:, axes], [signal.values.shape[axis] for axis in axes]
    if (starts == starts[0]).all():
        starts = starts[:1]
    pieces = []
    for places in starts.tolist():
        piece = tensor
        for axis, start, size in zip(axes, places, sizes, strict=True):
            piece = piece.narrow(axis, start, size)
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _crop(values: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), start=1):
        if size != values.shape[axis]:
            values = values.narrow(axis, start, size)
    return values
