"""The deconvnet of Zeiler & Fergus (ECCV 2014, section 2.1) shows which pixels drove a unit. It works on any graph.

`trace` runs the network forward once and keeps what the backward pass needs. `project` then goes back to the pixels
from any tensor of maps, for any number of them. The worker calls both. All functions are pure: they keep no state, and
many threads may call them at once on one graph and one trace.

A projection is the gradient of the unit, times its activation, with one change: the backward step of every ReLU is a
ReLU on the gradient itself. `zfserve_model.explanation.rules` has the backward step of each operation.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zfserve_model.explanation.backward_pass import descend, plan_descent
from zfserve_model.explanation.forward_pass import run_and_keep
from zfserve_model.explanation.rules import projection_rule
from zfserve_model.explanation.signals import Signal
from zfserve_model.graph.graph import Graph
from zfserve_model.layers.boxes import Boxes

CHUNK = 9
"""The number of maps whose way down begins together. If a consumer stops early, the later chunks are never computed.
Larger chunks would not make the matrix products faster."""

MEMORY_BYTES = 32 << 20
"""The default limit of the signals that are alive at once. Measured on CPUs: larger batches take longer, because the
signals no longer fit into the processor's cache."""


class UnknownLayer(ValueError):
    """The trace has no activations of that tensor."""


class OutOfRange(IndexError):
    """The layer has no such map or unit, or fewer maps than the count."""


class NotProjectable(ValueError):
    """A node of the network is in the way of the projection. The message names it."""


@dataclass(frozen=True)
class StrongestUnit:
    """Selects the unit of the map with the highest activation. Ties go to the first unit in row-major order."""


@dataclass(frozen=True)
class Position:
    """Selects the unit at this row and column of the map. Both count from 0 at the top left."""

    row: int
    column: int


@dataclass(frozen=True)
class WholeMap:
    """Selects all units of the map together, each with its own activation."""


@dataclass(frozen=True)
class UnitOfEach:
    """Selects one unit in each map, each at its own position."""

    places: Mapping[int, Position]


UnitRule = StrongestUnit | Position | WholeMap | UnitOfEach


@dataclass(frozen=True)
class Window:
    """Bounds a rectangle of input pixels: columns left <= x < right, rows top <= y < bottom."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Projection:
    """Holds the projection of one feature map.

    Attributes:
        map: the index of the feature map in its layer.
        unit: the position of the projected unit. None means the whole map.
        activation: the activation of that unit, or the highest activation of a whole map.
        window: the pixels that the signal can reach, inside of the image: the receptive field, without what only the
            gates and the statistics of norms see. The projection is zero outside of it.
        pixels: the values inside the window, float32 (3, height, width), RGB, in the space of the normalised input.
    """

    map: int
    unit: Position | None
    activation: float
    window: Window
    pixels: Tensor


@dataclass(frozen=True)
class Trace:
    """Holds one forward pass, as `trace` made it.

    Attributes:
        graph: the network.
        image: the input, float32 (3, height, width).
        activations: the output of each traced layer by tensor, float32 (channels, height, width).
        kept: what the backward steps need, by the first output of the node: the switches of a max-pool, see
            `pool_with_switches`; the value of a gate; the mask of the maxima of a global max-pool.
    """

    graph: Graph
    image: Tensor
    activations: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """The memory that the trace holds, in bytes."""
        return sum(tensor.nbytes for tensor in (self.image, *self.activations.values(), *self.kept.values()))


@torch.inference_mode()
def trace(graph: Graph, image: Tensor, tensors: Collection[str]) -> Trace:
    """Runs `image` through `graph`, up to the highest of `tensors`.

    Args:
        graph: the network.
        image: float32 (3, height, width), RGB, normalised, of the size that the graph takes.
        tensors: the layers that will be projected or explained, each of shape (1, channels, height, width).

    Raises:
        ValueError: `image` has another shape, or one of `tensors` is no tensor of maps.
        UnsupportedNode: a node below one of `tensors` cannot run.
    """
    if tuple(image.shape) != graph.shapes[graph.input][1:]:
        raise ValueError(f"the image must have the shape {graph.shapes[graph.input][1:]}, not {tuple(image.shape)}")
    for tensor in tensors:
        if len(graph.shapes.get(tensor, ())) != 4:
            raise ValueError(f"{tensor!r} is no tensor of feature maps")
    values, kept = run_and_keep(graph, image[None], tensors)
    return Trace(graph, image, {tensor: values[tensor][0] for tensor in tensors}, kept)


@torch.inference_mode()
def strongest_maps(trace: Trace, tensor: str, count: int) -> list[int]:
    """Returns the `count` feature maps with the highest single activation, the highest first.

    Raises:
        UnknownLayer: the trace has no such layer.
        OutOfRange: `count` is not between 1 and the layer's number of maps.
    """
    return highest_maps(activations_of(trace, tensor).flatten(1).amax(1), count, tensor)


def highest_maps(values: Tensor, count: int, layer: str) -> list[int]:
    """Returns the `count` maps with the highest of `values`, float (channels,), the highest first.

    Ties go to the map with the lower index.

    Raises:
        OutOfRange: `count` is not between 1 and the length of `values`.
    """
    if not 1 <= count <= len(values):
        raise OutOfRange(f"{layer} has {len(values)} maps: ask for 1 to {len(values)} of them, not {count}")
    return values.sort(descending=True, stable=True).indices[:count].tolist()


def project(
    trace: Trace,
    tensor: str,
    maps: Sequence[int],
    rule: UnitRule = StrongestUnit(),
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[Projection]:
    """Projects one unit of each of `maps`, or all its units, back to the pixels.

    The call checks its arguments at once. The work is done in chunks while the iterator is consumed, in the order of
    `maps`.

    Args:
        trace: the forward pass of the photo.
        tensor: a traced layer.
        maps: the indices of the feature maps. A map may be named twice.
        rule: says which unit of each map is projected.
        memory_bytes: the limit of the signals that are alive at once. A single signal may be larger.

    Raises:
        UnknownLayer: the trace has no such layer.
        OutOfRange: the layer has no such map, or the map has no such unit.
        NotProjectable: a node below the layer is in the way.
    """
    channels, height, width = activations_of(trace, tensor).shape
    for index in maps:
        if not 0 <= index < channels:
            raise OutOfRange(f"{tensor} has maps 0 to {channels - 1}, not {index}")
    if isinstance(rule, Position) and not (0 <= rule.row < height and 0 <= rule.column < width):
        raise OutOfRange(
            f"{tensor} has units in rows 0 to {height - 1} and columns 0 to {width - 1}, "
            f"not ({rule.row}, {rule.column})"
        )
    if obstacle := projection_rule(trace.graph, tensor).obstacle:
        raise NotProjectable(obstacle)
    return _projections(trace, tensor, maps, rule, memory_bytes)


# On a generator, this decorator turns inference mode off at each yield, while the consumer works.
@torch.inference_mode()
def _projections(
    trace: Trace, tensor: str, maps: Sequence[int], rule: UnitRule, memory_bytes: int
) -> Iterator[Projection]:
    for begin in range(0, len(maps), CHUNK):
        chunk = list(maps[begin : begin + CHUNK])
        units, seed = _seed(activations_of(trace, tensor), chunk, rule)
        activations = seed.values.flatten(1).amax(1).tolist()
        sizes = np.array([1, *seed.values.shape[1:]])
        descent = plan_descent(trace.graph, tensor, Boxes(seed.starts, seed.starts + sizes), trace.kept, memory_bytes)
        for index, unit, activation, pixels in zip(
            chunk, units, activations, descend(descent, tensor, seed), strict=True
        ):
            _, _, top, left = pixels.starts[0].tolist()
            height, width = pixels.values.shape[2:]
            yield Projection(
                index, unit, activation, Window(left, top, left + width, top + height), pixels.values[0].clone()
            )


def _seed(activations: Tensor, maps: list[int], rule: UnitRule) -> tuple[list[Position | None], Signal]:
    """Returns the selected units, and the signals to start from: each is a box of those units alone."""
    planes = activations[maps]
    width = planes.shape[-1]
    starts = np.zeros((len(maps), 4), np.int64)
    starts[:, 1] = maps
    match rule:
        case WholeMap():
            return [None] * len(maps), Signal(planes[:, None], starts)
        case Position(row, column):
            places = [row * width + column] * len(maps)
        case UnitOfEach(each):
            places = [each[index].row * width + each[index].column for index in maps]
        case StrongestUnit():
            places = planes.flatten(1).argmax(1).tolist()
    rows, columns = [place // width for place in places], [place % width for place in places]
    starts[:, 2], starts[:, 3] = rows, columns
    return [*map(Position, rows, columns)], Signal(planes[range(len(maps)), rows, columns][:, None, None, None], starts)


def activations_of(trace: Trace, tensor: str) -> Tensor:
    """Returns the layer's output, float32 (channels, height, width). Raises UnknownLayer."""
    try:
        return trace.activations[tensor]
    except KeyError:
        raise UnknownLayer(f"there is no layer {tensor!r}; the layers are {', '.join(trace.activations)}") from None
