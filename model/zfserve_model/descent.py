"""The steps of a projection's way down: transposed convolution, unpooling, rectification.

Each is the transpose of the forward step it undoes (the ReLU excepted, which has none: the signal is rectified
itself). They work on many signals at once, each in the window its unit can see, so the cost is that of the
receptive fields and not of the whole maps. Called by `zfserve_model.deconvnet` alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Signal:
    """Signals of n units at one layer, each within its own window of that layer; zero everywhere else.

    Attributes:
        values: float (channels, n, height, width). Channels come first, so that one matrix product convolves all
            signals together. What lies outside the layer's map is zero.
        tops, lefts: int64 (n,), row and column of each window's first value in the layer's map; negative where the
            window begins in the padding.
        maps: int64 (n,) while each signal still lives in the one feature map it came from (`values` then has a single
            channel), None once a convolution has spread it over all channels.
    """

    values: Tensor
    tops: Tensor
    lefts: Tensor
    maps: Tensor | None


def pool_with_switches(pool: nn.MaxPool2d, activations: Tensor) -> tuple[Tensor, Tensor]:
    """Max-pool and remember where each maximum was.

    Args:
        activations: float (channels, height, width).

    Returns:
        The pooled activations, and the switches: uint8 of the same shape, the maximum's place within its own pooling
        window, counted row by row. Counted so, a switch means the same in every window cut out of the map.
    """
    kernel, stride = _kernel_and_stride(pool)
    pooled, places = functional.max_pool2d(
        activations[None], kernel, stride, ceil_mode=pool.ceil_mode, return_indices=True
    )
    width = activations.shape[-1]
    first_rows = stride * torch.arange(pooled.shape[-2], device=places.device)[:, None]
    first_columns = stride * torch.arange(pooled.shape[-1], device=places.device)
    switches = (places // width - first_rows) * kernel + (places % width - first_columns)
    return pooled[0], switches[0].to(torch.uint8)


def rectify(signal: Signal) -> Signal:
    return Signal(signal.values.relu(), signal.tops, signal.lefts, signal.maps)


def unpool(signal: Signal, pool: nn.MaxPool2d, switches: Tensor) -> Signal:
    """Send each value to the place its switch remembers; values that meet there add.

    Args:
        switches: uint8 (channels, height, width) of `pool_with_switches`, for the whole layer.
    """
    kernel, stride = _kernel_and_stride(pool)
    height, width = signal.values.shape[-2:]
    # Outside of the map the values are zero, so any switch will do there.
    rows = _places(signal.tops, height).clamp(0, switches.shape[-2] - 1)[:, :, None]
    columns = _places(signal.lefts, width).clamp(0, switches.shape[-1] - 1)[:, None, :]
    if signal.maps is None:
        switches = switches[:, rows, columns]
    else:
        switches = switches[signal.maps[:, None, None], rows, columns][None]
    unpooled = _blank(signal.values, signal.values.shape[0], kernel, stride)
    for place, target in enumerate(_targets(unpooled, kernel, stride, height, width)):
        target += signal.values * (switches == place)
    return Signal(unpooled, signal.tops * stride, signal.lefts * stride, signal.maps)


def convolve_transposed(signal: Signal, conv: nn.Conv2d, height: int, width: int) -> Signal:
    """The transpose of `conv`, without its bias, onto the layer below, whose maps are `height` x `width`."""
    assert isinstance(conv.padding, tuple)
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    _, n, signal_height, signal_width = signal.values.shape
    if signal.maps is None:
        spread = conv.weight.flatten(1).T @ signal.values.flatten(1)
    else:
        filters = conv.weight[signal.maps].flatten(1).T
        spread = filters[:, :, None] * signal.values.flatten(2)
    spread = spread.view(conv.in_channels, kernel * kernel, n, signal_height, signal_width)
    values = _blank(signal.values, conv.in_channels, kernel, stride)
    for place, target in enumerate(_targets(values, kernel, stride, signal_height, signal_width)):
        target += spread[:, place]
    below = Signal(values, signal.tops * stride - padding, signal.lefts * stride - padding, None)
    return _keep_inside(below, height, width) if padding else below


def _kernel_and_stride(pool: nn.MaxPool2d) -> tuple[int, int]:
    assert isinstance(pool.kernel_size, int)
    assert isinstance(pool.stride, int)
    return pool.kernel_size, pool.stride


def _places(starts: Tensor, size: int) -> Tensor:
    """int64 (n, size): the places in the layer's map that each window covers along one axis."""
    return starts[:, None] + torch.arange(size, device=starts.device)


def _blank(values: Tensor, channels: int, kernel: int, stride: int) -> Tensor:
    """Zeros for the window that a kernel reaches from `values`' window."""
    _, n, height, width = values.shape
    return values.new_zeros(channels, n, (height - 1) * stride + kernel, (width - 1) * stride + kernel)


def _targets(window: Tensor, kernel: int, stride: int, height: int, width: int) -> Iterator[Tensor]:
    """For each place in the kernel, row by row: the view of `window` which that place touches."""
    for row in range(kernel):
        for column in range(kernel):
            bottom, right = row + (height - 1) * stride + 1, column + (width - 1) * stride + 1
            yield window[..., row:bottom:stride, column:right:stride]


def _keep_inside(signal: Signal, height: int, width: int) -> Signal:
    """Drop what fell into the padding around a map of `height` x `width`."""
    rows, columns = _places(signal.tops, signal.values.shape[-2]), _places(signal.lefts, signal.values.shape[-1])
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    if bool(inside_rows.all()) and bool(inside_columns.all()):
        return signal
    values = signal.values * (inside_rows[:, :, None] & inside_columns[:, None, :])
    # Edges that lie in the padding for every signal are cut off: a whole map stays as large as its layer.
    used_rows, used_columns = inside_rows.any(0).nonzero(), inside_columns.any(0).nonzero()
    top, bottom = int(used_rows[0]), int(used_rows[-1]) + 1
    left, right = int(used_columns[0]), int(used_columns[-1]) + 1
    return Signal(values[..., top:bottom, left:right], signal.tops + top, signal.lefts + left, signal.maps)
