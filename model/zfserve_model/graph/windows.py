"""Computes the operations that slide a window over a map: convolution, transposed convolution and pooling.

`operations` lists them. Each function takes the attributes of the ONNX operator and its inputs as tensors
(N, C, spatial axes). It works on one to three spatial axes, and torch's autograd differentiates it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """Describes a sliding window, one number for each spatial axis.

    Attributes:
        kernel, strides, dilations: as in ONNX, in positions.
        before, after: the padding at the start and at the end of the axis. The layer below is padded by as much.
        overhang: further padding at the end that only ceil mode reads. It counts in no average.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    overhang: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        return self.before == self.after and not any(self.overhang)


def window(attributes: Attributes, size: Sequence[int], kernel: Sequence[int] | None = None) -> Window:
    """Returns the window of a convolution or a pool over a map with spatial `size`.

    Args:
        attributes: the attributes of the ONNX operator.
        size: the length of each spatial axis of the input.
        kernel: the size of the kernel, if the weights give it. Otherwise the attribute `kernel_shape` does.
    """
    axes = len(size)
    kernel = tuple(kernel if kernel is not None else attributes["kernel_shape"])
    strides = tuple(attributes.get("strides") or [1] * axes)
    dilations = tuple(attributes.get("dilations") or [1] * axes)
    pads = list(attributes.get("pads") or [0] * 2 * axes)
    before, after, overhang = pads[:axes], pads[axes:], [0] * axes
    automatic = attributes.get("auto_pad", "NOTSET")
    for axis in range(axes):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            total = max((math.ceil(size[axis] / strides[axis]) - 1) * strides[axis] + extent - size[axis], 0)
            small, large = total // 2, total - total // 2
            before[axis], after[axis] = (small, large) if automatic == "SAME_UPPER" else (large, small)
        elif automatic == "VALID":
            before[axis] = after[axis] = 0
        if attributes.get("ceil_mode"):
            padded = size[axis] + before[axis] + after[axis]
            count = math.ceil((padded - extent) / strides[axis]) + 1
            if (count - 1) * strides[axis] >= size[axis] + before[axis]:
                count -= 1  # A window may not begin in the padding at the end.
            overhang[axis] = max((count - 1) * strides[axis] + extent - padded, 0)
    return Window(kernel, strides, dilations, tuple(before), tuple(after), tuple(overhang))


def pad_axes(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads the last axes of `x` with a value. A negative number crops."""
    if not any(before) and not any(after):
        return x
    amounts = [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]
    return F.pad(x, amounts, value=value)


def convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    frame = window(attributes, x.shape[2:], weight.shape[2:])
    padding: Sequence[int] = frame.before
    if not frame.symmetric:
        x, padding = pad_axes(x, frame.before, frame.after), [0] * len(frame.kernel)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(frame.kernel) - 1]
    return convolve(x, weight, bias, frame.strides, padding, frame.dilations, attributes.get("group", 1))


def transposed_convolution(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = x.dim() - 2
    kernel = tuple(weight.shape[2:])
    strides = tuple(attributes.get("strides") or [1] * axes)
    dilations = tuple(attributes.get("dilations") or [1] * axes)
    extra = list(attributes.get("output_padding") or [0] * axes)
    pads = list(attributes.get("pads") or [0] * 2 * axes)
    before, after = pads[:axes], pads[axes:]
    automatic = attributes.get("auto_pad", "NOTSET")
    for axis in range(axes):
        full = (x.shape[2 + axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 + extra[axis]
        total = None
        if attributes.get("output_shape"):
            total = full - attributes["output_shape"][axis]
        elif automatic in ("SAME_UPPER", "SAME_LOWER"):
            total = full - x.shape[2 + axis] * strides[axis]
        if total is not None:
            small, large = total // 2, total - total // 2
            before[axis], after[axis] = (small, large) if automatic == "SAME_UPPER" else (large, small)
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    group = attributes.get("group", 1)
    if before == after and all(amount >= 0 for amount in before):
        return convolve(x, weight, bias, strides, before, extra, group, dilations)
    # torch allows an output padding below the stride only. Cropping the full result works for all.
    full_map = pad_axes(convolve(x, weight, bias, strides, [0] * axes, [0] * axes, group, dilations), [0] * axes, extra)
    return pad_axes(full_map, [-amount for amount in before], [-amount for amount in after])


def max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    frame = window(attributes, x.shape[2:])
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(frame.kernel) - 1]
    padding: Sequence[int] = frame.before
    if not frame.symmetric or any(2 * amount > kernel for amount, kernel in zip(padding, frame.kernel, strict=True)):
        end = [after + over for after, over in zip(frame.after, frame.overhang, strict=True)]
        x, padding = pad_axes(x, frame.before, end, -math.inf), [0] * len(frame.kernel)
    return pool(x, frame.kernel, frame.strides, list(padding), frame.dilations)


def average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """Returns the mean of each window.

    Positions in the padding count if `count_include_pad` is set. Positions past it, in the overhang of ceil mode,
    never count.
    """
    frame = window(attributes, x.shape[2:])
    axes = len(frame.kernel)
    include = bool(attributes.get("count_include_pad", 0))
    end = [after + over for after, over in zip(frame.after, frame.overhang, strict=True)]
    mean = _mean_of_windows(pad_axes(x, frame.before, end), frame)
    if any(frame.overhang) or (not include and (any(frame.before) or any(frame.after))):
        ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        counted = pad_axes(pad_axes(ones, frame.before, frame.after, float(include)), [0] * axes, frame.overhang)
        mean = mean / _mean_of_windows(counted, frame)
    return mean


def _mean_of_windows(x: Tensor, frame: Window) -> Tensor:
    axes = len(frame.kernel)
    if all(step == 1 for step in frame.dilations):
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
        pooled: Tensor = pool(x, frame.kernel, frame.strides)
        return pooled
    # torch has no dilated average pool. It is a convolution of each channel with equal weights.
    weight = torch.full((1, 1, *frame.kernel), 1 / math.prod(frame.kernel), dtype=x.dtype, device=x.device)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    channels = x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:])
    pooled = convolve(channels, weight, None, frame.strides, [0] * axes, frame.dilations)
    return pooled.reshape(*x.shape[:2], *pooled.shape[2:])
