"""The deconvnet of Zeiler & Fergus (ECCV 2014, section 2.1): which pixels drove a unit.

`trace` runs the network forward once and keeps what the way down needs; `project` then walks down from any layer
of the trunk, for as many feature maps as wanted. Used by the worker, and by export for its example pictures. All
functions are pure: they keep nothing, and may run in many threads at once on one network and one trace.

A projection is the gradient of the unit times its activation, with the backward step of every ReLU replaced by a ReLU
on the gradient itself. Contrast normalisation is passed over on the way down, as in the paper.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from zfserve_model.descent import Signal, convolve_transposed, pool_with_switches, rectify, unpool
from zfserve_model.layer_table import layer_kind
from zfserve_model.networks import Network

CHUNK = 9
"""Maps projected together: few enough that a consumer who stops early saves work, enough to fill matrix products."""


class UnknownLayer(ValueError):
    """The trunk has no layer of that name."""


class OutOfRange(IndexError):
    """A map, a unit or a count that the layer does not have."""


@dataclass(frozen=True)
class StrongestUnit:
    """The unit of the map with the highest activation; of equals, the first in reading order."""


@dataclass(frozen=True)
class Position:
    """The unit at this place of the map, counted from 0 at the top left."""

    row: int
    column: int


@dataclass(frozen=True)
class WholeMap:
    """All units of the map together, each with its own activation."""


@dataclass(frozen=True)
class UnitOfEach:
    """In every map the unit at a place of its own."""

    places: Mapping[int, Position]


UnitRule = StrongestUnit | Position | WholeMap | UnitOfEach


@dataclass(frozen=True)
class Window:
    """Pixels of the input: columns left <= x < right, rows top <= y < bottom."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Projection:
    """What one feature map saw.

    Attributes:
        map: index of the feature map in its layer.
        unit: the unit projected, None for a whole map.
        activation: of that unit; for a whole map, the highest.
        window: the receptive field, cut off at the image's edges. Outside of it the projection is zero.
        pixels: float32 (3, height, width) of the window, RGB, in the space of the normalised input.
    """

    map: int
    unit: Position | None
    activation: float
    window: Window
    pixels: Tensor


@dataclass(frozen=True)
class Trace:
    """One forward pass through a trunk, as `trace` made it.

    Attributes:
        trunk: the layers that were run.
        image_size: height and width of the input, in pixels.
        activations: by layer, from the input upwards: float32 (channels, height, width).
        switches: by max-pool, uint8 like its activations; see `pool_with_switches`.
    """

    trunk: nn.Sequential
    image_size: tuple[int, int]
    activations: dict[str, Tensor]
    switches: dict[str, Tensor]


@torch.inference_mode()
def trace(network: Network, image: Tensor) -> Trace:
    """Run `image` through the trunk of `network`.

    Args:
        image: float32 (3, 224, 224), RGB, normalised.

    Raises:
        ValueError: the network still has batch norm, which `fold_batch_norm` removes; or `image` is not (3, H, W).
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image has shape (3, height, width), not {tuple(image.shape)}")
    signal, activations, switches = image, {}, {}
    for name, module in network.trunk.named_children():
        if layer_kind(module) == "pool":
            assert isinstance(module, nn.MaxPool2d)
            signal, switches[name] = pool_with_switches(module, signal)
        else:
            signal = module(signal[None])[0]
        activations[name] = signal
    return Trace(network.trunk, (image.shape[-2], image.shape[-1]), activations, switches)


@torch.inference_mode()
def strongest_maps(trace: Trace, layer: str, count: int) -> list[int]:
    """The `count` feature maps whose strongest single unit is the highest, the strongest first.

    Raises:
        UnknownLayer: the trunk has no such layer.
        OutOfRange: `count` is not within 1 and the layer's number of maps.
    """
    return highest_maps(activations_of(trace, layer).flatten(1).amax(1), count, layer)


def highest_maps(values: Tensor, count: int, layer: str) -> list[int]:
    """The `count` maps with the highest of `values`, (channels,), the highest first; of equals, the first of the layer.

    Raises:
        OutOfRange: `count` is not within 1 and the layer's number of maps.
    """
    if not 1 <= count <= len(values):
        raise OutOfRange(f"{layer} has {len(values)} maps: ask for 1 to {len(values)} of them, not {count}")
    return values.sort(descending=True, stable=True).indices[:count].tolist()


def project(
    trace: Trace,
    layer: str,
    maps: Sequence[int],
    rule: UnitRule = StrongestUnit(),
) -> Iterator[Projection]:
    """Project one unit of each of `maps` (or all its units) down to the pixels.

    Arguments are checked at once; the work is done in chunks as the iterator is consumed, in the order of `maps`.

    Raises:
        UnknownLayer: the trunk has no such layer.
        OutOfRange: the layer has no such map, or the map no such unit.
    """
    channels, height, width = activations_of(trace, layer).shape
    for index in maps:
        if not 0 <= index < channels:
            raise OutOfRange(f"{layer} has maps 0 to {channels - 1}, not {index}")
    if isinstance(rule, Position) and not (0 <= rule.row < height and 0 <= rule.column < width):
        raise OutOfRange(
            f"{layer} has units in rows 0 to {height - 1} and columns 0 to {width - 1}, not ({rule.row}, {rule.column})"
        )
    return _projections(trace, layer, maps, rule)


# On a generator, the decorator turns inference mode off again while the consumer works between two results.
@torch.inference_mode()
def _projections(trace: Trace, layer: str, maps: Sequence[int], rule: UnitRule) -> Iterator[Projection]:
    together, alone = _way_down(trace, layer)
    remaining = iter(maps)
    while chunk := list(islice(remaining, CHUNK)):
        units, signal = _seed(activations_of(trace, layer), chunk, rule)
        activations = signal.values.flatten(1).amax(1).tolist()
        signals = _descend(trace, together, signal).split()
        for index, unit, activation, one in zip(chunk, units, activations, signals, strict=True):
            window, pixels = _clip(_descend(trace, alone, one), trace.image_size)
            yield Projection(index, unit, activation, window, pixels)


def _way_down(trace: Trace, layer: str) -> tuple[list[str], list[str]]:
    """The layers from `layer` to the pixels: those to pass with all signals together, then those with each alone.

    Windows are small and filters large as far as the first pool below a convolution: there it pays to read the
    filters once for all. Below, it is the other way round: one signal stays in the processor's cache, is cropped to
    its own part of the image, and is ready before the next is begun.
    """
    names = list(trace.activations)
    path = names[names.index(layer) :: -1]
    convolved = False
    for depth, name in enumerate(path):
        module = trace.trunk.get_submodule(name)
        if convolved and isinstance(module, nn.MaxPool2d):
            return path[:depth], path[depth:]
        convolved = convolved or isinstance(module, nn.Conv2d)
    return path, []


def _seed(activations: Tensor, maps: list[int], rule: UnitRule) -> tuple[list[Position | None], Signal]:
    """The chosen units, and the signals at their start: nothing in the layer but those units."""
    planes = activations[maps]
    width = planes.shape[-1]
    match rule:
        case WholeMap():
            return [None] * len(maps), Signal(planes[:, None], (0,) * len(maps), (0,) * len(maps), tuple(maps))
        case Position(row, column):
            places = [row * width + column] * len(maps)
        case UnitOfEach(each):
            places = [each[index].row * width + each[index].column for index in maps]
        case StrongestUnit():
            places = planes.flatten(1).argmax(1).tolist()
    rows, columns = tuple(place // width for place in places), tuple(place % width for place in places)
    values = planes[range(len(maps)), rows, columns]
    return [*map(Position, rows, columns)], Signal(values[:, None, None, None], rows, columns, tuple(maps))


def _descend(trace: Trace, path: list[str], signal: Signal) -> Signal:
    """Walk down through the layers of `path`, from the output of its first to the input of its last."""
    names = list(trace.activations)
    for name in path:
        match trace.trunk.get_submodule(name):
            case nn.Conv2d() as conv:
                depth = names.index(name)
                size = trace.activations[names[depth - 1]].shape[-2:] if depth else trace.image_size
                signal = convolve_transposed(signal, conv, *size)
            case nn.ReLU():
                signal = rectify(signal)
            case nn.MaxPool2d() as pool:
                signal = unpool(signal, pool, trace.switches[name])
            case nn.LocalResponseNorm():
                pass  # "contrast normalization operations are not used" on the way down (section 2.1)
    return signal


def _clip(signal: Signal, image_size: tuple[int, int]) -> tuple[Window, Tensor]:
    """The window of a single signal within the image, and a copy of its pixels there."""
    (top,), (left,), (pixels,) = signal.tops, signal.lefts, signal.values
    bottom, right = top + pixels.shape[-2], left + pixels.shape[-1]
    window = Window(max(left, 0), max(top, 0), min(right, image_size[1]), min(bottom, image_size[0]))
    return window, pixels[:, window.top - top : window.bottom - top, window.left - left : window.right - left].clone()


def activations_of(trace: Trace, layer: str) -> Tensor:
    """float32 (channels, height, width). Raises UnknownLayer."""
    try:
        return trace.activations[layer]
    except KeyError:
        raise UnknownLayer(f"there is no layer {layer!r}; the layers are {', '.join(trace.activations)}") from None
