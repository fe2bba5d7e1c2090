"""Backward steps of operations that slide a window over a map: convolutions and pools.

They are exact transposes, in the form that `zfserve_model.explanation.backward_steps` describes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from zfserve_model.explanation.signals import Signal, cut
from zfserve_model.graph.windows import Window, window
from zfserve_model.layers.boxes import Indices, Step

FEW_CHANNELS = 3
"""Up to this number of input channels, a matrix product and `fold` take 0.6 to 0.75 of the time of oneDNN's transposed
convolution, whose vector registers need more channels."""

FEW_PLACES = 128
"""Up to this number of places in all signals together, one matrix product takes half of the time of oneDNN's transposed
convolution, which copies the filters into another order first. Measured with 512 to 1024 channels."""


def convolve_transposed(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Applies the transpose of a convolution, without its bias."""
    weight, groups = step.constant(1), step.integer("group", 1)
    assert weight is not None
    frame = window(step.node.attributes, step.shape[2:], weight.shape[2:])
    outputs, inputs = weight.shape[:2]
    starts = _starts_below(frame, signal.starts)
    if weight.ndim == 4 and signal.values.shape[1] == 1 < outputs:  # a signal in one map needs only its own filter
        starts[:, 1] = signal.starts[:, 1] // (outputs // groups) * inputs
        filters = weight[signal.starts[:, 1].tolist()].flatten(1)[..., None]
        return Signal(_fold(filters @ signal.values.flatten(2), signal, frame), starts)
    signal, starts[:, 1] = signal.spanning(step.output_shape, [1]), 0
    if groups > 1 or weight.ndim != 4:
        values = _convolve_transposed(signal.values, weight, frame, groups)
    elif max(frame.kernel) == max(frame.strides) == 1:
        values = (weight.flatten(1).mT @ signal.values.flatten(2)).view(len(signal), inputs, *signal.values.shape[2:])
    elif inputs <= FEW_CHANNELS or max(frame.kernel) == 1:
        values = _fold(weight.flatten(1).mT @ signal.values.flatten(2), signal, frame)
    elif signal.values[:, 0].numel() <= FEW_PLACES:
        places = signal.values.flatten(2).mT
        spread = (places.flatten(0, 1) @ weight.flatten(1)).view(*places.shape[:2], -1)
        values = _fold(spread.mT, signal, frame)
    else:
        values = _convolve_transposed(signal.values, weight, frame, groups)
    return Signal(values, starts)


def _convolve_transposed(values: Tensor, weight: Tensor, frame: Window, groups: int) -> Tensor:
    transpose = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    return transpose[weight.ndim - 3](values, weight, None, frame.strides, 0, 0, groups, frame.dilations)


def _fold(spread: Tensor, signal: Signal, frame: Window) -> Tensor:
    """Lays windows, float (n, channels * kernel, places), at the places of the signal. Windows that overlap add."""
    size = _sizes_below(frame, signal.values.shape[2:])
    return functional.fold(spread, size, frame.kernel, frame.dilations, stride=frame.strides)


def _starts_below(frame: Window, starts: Indices) -> Indices:
    """Returns the first place that each box reads, int64 (n, rank). The first two axes stay."""
    below = starts.copy()
    below[:, 2:] = below[:, 2:] * frame.strides - frame.before
    return below


def _sizes_below(frame: Window, sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the number of places along each axis that `sizes` neighbouring units read."""
    return tuple(
        (size - 1) * stride + (kernel - 1) * dilation + 1
        for size, kernel, stride, dilation in zip(sizes, frame.kernel, frame.strides, frame.dilations, strict=True)
    )


def unpool(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Sends each value to the place that its switch records. Values that reach the same place are added."""
    assert kept is not None
    frame = window(step.node.attributes, step.shape[2:])
    sizes = _sizes_below(frame, signal.values.shape[2:])
    device = kept.device
    switches = torch.arange(int(np.prod(frame.kernel)), device=device)
    corner = torch.zeros([1] * len(sizes), dtype=torch.long, device=device)
    places = torch.zeros_like(switches)
    pitch, area = 1, 1
    for axis in reversed(range(len(sizes))):
        index = torch.arange(signal.values.shape[2 + axis], device=device)
        corner = corner + (pitch * frame.strides[axis] * index).view(-1, *[1] * (len(sizes) - 1 - axis))
        places += switches // area % frame.kernel[axis] * frame.dilations[axis] * pitch
        pitch, area = pitch * sizes[axis], area * frame.kernel[axis]
    targets = (corner + places[cut(kept, signal).long()]).expand(signal.values.shape)
    values = signal.values.new_zeros(*signal.values.shape[:2], pitch)
    values.scatter_add_(2, targets.flatten(2), signal.values.flatten(2))
    return Signal(values.view(*values.shape[:2], *sizes), _starts_below(frame, signal.starts))


def spread_window_average(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
    """Spreads each value evenly over its window, as the transpose of average pooling does."""
    frame = window(step.node.attributes, step.shape[2:])
    divisors = _divisors(frame, step, bool(step.integer("count_include_pad", 0)))
    values = signal.values / cut(divisors.to(signal.values), signal)
    ones = values.new_ones(1, 1, *frame.kernel)
    spread = _convolve_transposed(values.flatten(0, 1)[:, None], ones, frame, 1)
    return Signal(spread.view(*values.shape[:2], *spread.shape[2:]), _starts_below(frame, signal.starts))


def _divisors(frame: Window, step: Step, padding_counts: bool) -> Tensor:
    """Returns the number of places that each window averages over, in the shape of the output's spatial axes."""
    divisors = torch.ones(())
    for axis, (size, units) in enumerate(zip(step.shape[2:], step.output_shape[2:], strict=True)):
        low, high = (-frame.before[axis], size + frame.after[axis]) if padding_counts else (0, size)
        first = torch.arange(units)[:, None] * frame.strides[axis] - frame.before[axis]
        places = first + torch.arange(frame.kernel[axis]) * frame.dilations[axis]
        divisors = divisors[..., None] * ((low <= places) & (places < high)).sum(1)
    return divisors
