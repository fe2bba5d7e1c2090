"""This module has the three backward steps of a projection: transposed convolution, unpooling and rectification.

The first two are the exact transposes of their forward steps. Rectification applies the ReLU to the signal itself. The
steps work on many signals at once, each inside the window that its unit can see, so the cost follows the receptive
fields and not the size of the maps. Only `zfserve_model.chain_deconvnet` calls them.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Signal:
    """Holds the signals of n units at one layer. Each is zero outside its own window of that layer's maps.

    Attributes:
        values: float (n, channels, height, width). Values outside of the maps, in the padding, are zero.
        tops, lefts: the first row and column of each window in the maps, n integers each. They are negative in the
            padding.
        maps: the index of the only feature map that each signal occupies, n integers. `values` then has one channel.
            None after a convolution has spread the signals over all channels.
    """

    values: Tensor
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    maps: tuple[int, ...] | None = None

    def split(self) -> list["Signal"]:
        """Returns each signal as a `Signal` of its own."""
        return [
            Signal(
                self.values[index : index + 1],
                self.tops[index : index + 1],
                self.lefts[index : index + 1],
                None if self.maps is None else self.maps[index : index + 1],
            )
            for index in range(len(self.tops))
        ]


def pool_with_switches(pool: nn.MaxPool2d, activations: Tensor) -> tuple[Tensor, Tensor]:
    """Max-pools and records where each maximum was.

    Args:
        activations: float (channels, height, width).

    Returns:
        The pooled activations and the switches. A switch, uint8, is the position of the maximum within its pooling
        window, counted row by row. It is relative, so it stays valid in any window that is cut out of the map.
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


def unpool(signal: Signal, pool: nn.MaxPool2d, switches: Tensor) -> Signal:
    """Sends each value to the position that its switch records. Values that reach the same position are added.

    Args:
        signal: one signal, or several whose windows lie wholly within the maps.
        switches: the switches of the whole layer, uint8 (channels, height, width), from `pool_with_switches`.
    """
    signal = _crop(signal, *switches.shape[-2:])
    kernel, stride = _kernel_and_stride(pool)
    n, channels, height, width = signal.values.shape
    below_height, below_width = _reach(height, kernel, stride), _reach(width, kernel, stride)
    device = switches.device
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    places = torch.arange(kernel * kernel, device=device)
    steps = places // kernel * below_width + places % kernel
    targets = stride * (rows * below_width + columns) + steps[_cut_windows(switches, signal).long()]
    values = signal.values.new_zeros(n, channels, below_height * below_width)
    values.scatter_add_(2, targets.flatten(2), signal.values.flatten(2))
    return Signal(
        values.view(n, channels, below_height, below_width),
        tuple(top * stride for top in signal.tops),
        tuple(left * stride for left in signal.lefts),
        signal.maps,
    )


def rectify(signal: Signal) -> Signal:
    """Sets negative values to zero."""
    return replace(signal, values=signal.values.relu())


def convolve_transposed(signal: Signal, conv: nn.Conv2d, height: int, width: int) -> Signal:
    """Applies the transpose of `conv`, without its bias. The maps of the layer below are `height` x `width`."""
    assert isinstance(conv.padding, tuple)
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    # matmul takes a slower path for an operand that requires a gradient, even in inference mode.
    filters = conv.weight.detach()
    if signal.maps is not None:
        filters = filters[list(signal.maps)][:, None]  # a signal in a single map needs only that map's filter
    if signal.maps is None and conv.in_channels > 3:
        values = functional.conv_transpose2d(signal.values, filters, stride=stride)
    else:
        # For 3 channels too, this takes 0.6 of the time of oneDNN's kernel, whose vector registers need more channels.
        spread = filters.flatten(-3).mT @ signal.values.flatten(2)
        height_below, width_below = (_reach(side, kernel, stride) for side in signal.values.shape[-2:])
        values = functional.fold(spread, (height_below, width_below), kernel, stride=stride)
    tops = tuple(top * stride - padding for top in signal.tops)
    lefts = tuple(left * stride - padding for left in signal.lefts)
    below = _crop(Signal(values, tops, lefts), height, width)
    _clear_padding(below, height, width)
    return below


def _kernel_and_stride(pool: nn.MaxPool2d) -> tuple[int, int]:
    assert isinstance(pool.kernel_size, int)
    assert isinstance(pool.stride, int)
    return pool.kernel_size, pool.stride


def _reach(size: int, kernel: int, stride: int) -> int:
    """Returns the number of positions in the layer below, along one side, that `size` neighbouring units see."""
    return (size - 1) * stride + kernel


def _cut_windows(switches: Tensor, signal: Signal) -> Tensor:
    """Returns the switches inside the signal's windows, in the shape of its values."""
    height, width = signal.values.shape[-2:]
    maps = [slice(None)] * len(signal.tops) if signal.maps is None else [slice(m, m + 1) for m in signal.maps]
    return torch.stack(
        [
            switches[planes, top : top + height, left : left + width]
            for planes, top, left in zip(maps, signal.tops, signal.lefts, strict=True)
        ]
    )


def _crop(signal: Signal, height: int, width: int) -> Signal:
    """Crops rows and columns that lie outside of the maps (`height` x `width`) in every window.

    They lie in the padding, or past the last pooling window.
    """
    tops, lefts = signal.tops, signal.lefts
    row, column = max(-max(tops), 0), max(-max(lefts), 0)
    return replace(
        signal,
        values=signal.values[..., row : height - min(tops), column : width - min(lefts)],
        tops=tuple(top + row for top in tops),
        lefts=tuple(left + column for left in lefts),
    )


def _clear_padding(signal: Signal, height: int, width: int) -> None:
    """Sets values outside of the maps (`height` x `width`) to zero, in place. Only some windows have any."""
    for values, top, left in zip(signal.values, signal.tops, signal.lefts, strict=True):
        values[:, : max(-top, 0)] = 0
        values[:, height - top :] = 0
        values[..., : max(-left, 0)] = 0
        values[..., width - left :] = 0
