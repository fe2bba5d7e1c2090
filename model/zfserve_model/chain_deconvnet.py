"""The deconvnet of Zeiler & Fergus (ECCV 2014, section 2.1) shows which pixels drove a unit.

`trace` runs the network forward once and keeps what the backward pass needs. `project` then goes back to the pixels
from any layer of the trunk, for any number of feature maps. The worker calls both. All functions are pure: they keep no
state, and many threads may call them at once on one network and one trace.

A projection is the gradient of the unit, times its activation, with one change: the backward step of every ReLU is a
ReLU on the gradient itself. The backward pass skips contrast normalisation, as the paper does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from zfserve_model.chain_steps import Signal, convolve_transposed, pool_with_switches, rectify, unpool
from zfserve_model.network_layer_table import layer_kind
from zfserve_model.networks import Network

CHUNK = 9
"""The number of maps that are projected together. If a consumer stops early, the later chunks are never computed.
Larger chunks would not make the matrix products faster."""


class UnknownLayer(ValueError):
    """The trunk has no layer of that name."""


class OutOfRange(IndexError):
    """The layer has no such map or unit, or fewer maps than the count."""


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
        window: the receptive field, clipped to the image. The projection is zero outside of it.
        pixels: the values inside the window, float32 (3, height, width), RGB, in the space of the normalised input.
    """

    map: int
    unit: Position | None
    activation: float
    window: Window
    pixels: Tensor


@dataclass(frozen=True)
class Trace:
    """Holds one forward pass through a trunk, as `trace` made it.

    Attributes:
        trunk: the layers that were run.
        image_size: the height and width of the input, in pixels.
        activations: the output of each layer by name, in forward order, float32 (channels, height, width).
        switches: the switches of each max-pool by name, uint8 in the shape of its output; see `pool_with_switches`.
    """

    trunk: nn.Sequential
    image_size: tuple[int, int]
    activations: dict[str, Tensor]
    switches: dict[str, Tensor]


@torch.inference_mode()
def trace(network: Network, image: Tensor) -> Trace:
    """Runs `image` through the trunk of `network`.

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
    """Returns the `count` feature maps with the highest single activation, the highest first.

    Raises:
        UnknownLayer: the trunk has no such layer.
        OutOfRange: `count` is not between 1 and the layer's number of maps.
    """
    return highest_maps(activations_of(trace, layer).flatten(1).amax(1), count, layer)


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
    layer: str,
    maps: Sequence[int],
    rule: UnitRule = StrongestUnit(),
) -> Iterator[Projection]:
    """Projects one unit of each of `maps`, or all its units, back to the pixels.

    The call checks its arguments at once. The work is done in chunks while the iterator is consumed, in the order of
    `maps`.

    Raises:
        UnknownLayer: the trunk has no such layer.
        OutOfRange: the layer has no such map, or the map has no such unit.
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


# On a generator, this decorator turns inference mode off at each yield, while the consumer works.
@torch.inference_mode()
def _projections(trace: Trace, layer: str, maps: Sequence[int], rule: UnitRule) -> Iterator[Projection]:
    together, alone = _split_path(trace, layer)
    remaining = iter(maps)
    while chunk := list(islice(remaining, CHUNK)):
        units, signal = _seed(activations_of(trace, layer), chunk, rule)
        activations = signal.values.flatten(1).amax(1).tolist()
        signals = _backward(trace, together, signal).split()
        for index, unit, activation, one in zip(chunk, units, activations, signals, strict=True):
            window, pixels = _clip(_backward(trace, alone, one), trace.image_size)
            yield Projection(index, unit, activation, window, pixels)


def _split_path(trace: Trace, layer: str) -> tuple[list[str], list[str]]:
    """Splits the path from `layer` to the pixels into layers for all signals together and layers for each signal alone.

    The first part ends at the first pool below a convolution. Windows are small and filters large there, so it pays
    to read the filters once for all signals. In the second part windows are large and filters small. One signal then
    stays in the processor's cache, is cropped to its own part of the image, and is complete before the next begins.
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
    """Returns the selected units, and the signals to start from: zero everywhere except at those units."""
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


def _backward(trace: Trace, path: list[str], signal: Signal) -> Signal:
    """Carries the signal back through the layers of `path`, from the output of the first to the input of the last."""
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
    """Returns the window of a single signal, clipped to the image, and a copy of its pixels there."""
    (top,), (left,), (pixels,) = signal.tops, signal.lefts, signal.values
    bottom, right = top + pixels.shape[-2], left + pixels.shape[-1]
    window = Window(max(left, 0), max(top, 0), min(right, image_size[1]), min(bottom, image_size[0]))
    return window, pixels[:, window.top - top : window.bottom - top, window.left - left : window.right - left].clone()


def activations_of(trace: Trace, layer: str) -> Tensor:
    """Returns the layer's output, float32 (channels, height, width). Raises UnknownLayer."""
    try:
        return trace.activations[layer]
    except KeyError:
        raise UnknownLayer(f"there is no layer {layer!r}; the layers are {', '.join(trace.activations)}") from None
