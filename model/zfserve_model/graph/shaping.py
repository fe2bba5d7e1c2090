"""Computes the operations that move values and do not change them: reshape, slice, pad, resize and others.

`operations` lists them. Each function takes the attributes of the ONNX operator in its newest form, and its inputs as
tensors. Inputs that are sizes, axes or limits are constants.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from zfserve_model.graph.windows import pad_axes

Attributes = Mapping[str, Any]

LONGEST_RESIZED_AXIS = 2**16
"""The rule of Resize is computed position by position, so a hostile file may not ask for a longer axis."""

_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def integers(tensor: Tensor) -> list[int]:
    """Returns the values of a tensor of sizes, axes or limits."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = integers(shape)
    if not attributes.get("allowzero"):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = [axis for axis, size in enumerate(x.shape) if size == 1] if axes is None else integers(axes)
    if any(x.shape[axis] != 1 for axis in chosen):
        raise ValueError(f"an axis of {tuple(x.shape)} that is squeezed is not 1")
    return x.squeeze(tuple(chosen))


def unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    chosen = integers(axes)
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(list(attributes.get("perm") or range(x.dim())[::-1]))


def expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = integers(shape)
    # ONNX lets a 1 in the target keep the input's size, and the target may have fewer axes. torch says this with -1.
    sizes = [1] * (x.dim() - len(sizes)) + sizes
    offset = len(sizes) - x.dim()
    return x.expand([-1 if size == 1 and axis >= offset else size for axis, size in enumerate(sizes)])


def tile(attributes: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


def concat(attributes: Attributes, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, attributes["axis"])


def split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return tuple(torch.split(x, integers(sizes), axis))
    return tuple(torch.split(x, math.ceil(x.shape[axis] / attributes["num_outputs"]), axis))


def slice_axes(
    attributes: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = integers(starts), integers(ends)
    chosen = range(len(first)) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    for start, end, axis, step in zip(first, last, chosen, strides, strict=True):
        size = x.shape[axis]
        # An end below -size with a negative step means "down to the first". Python would count it from the end again.
        limit = None if step < 0 and end < -size else end
        kept = range(size)[slice(start, limit, step)]
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(kept.start, max(kept.stop, kept.start), step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64, device=x.device))
    return x


def gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    positive = torch.where(indices < 0, indices + x.shape[axis], indices).to(x.device)
    picked = x.index_select(axis, positive.reshape(-1))
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def pad(
    attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    amounts = integers(pads)
    count = len(amounts) // 2
    before, after = [0] * x.dim(), [0] * x.dim()
    for position, axis in enumerate(range(x.dim()) if axes is None else integers(axes)):
        before[axis], after[axis] = amounts[position], amounts[count + position]
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        return pad_axes(x, before, after, 0.0 if value is None else float(value))
    if mode not in _PAD_MODES or any(before[:2]) or any(after[:2]):
        raise NotImplementedError(f"Pad in mode {mode} of the first two axes")
    flat = [amount for pair in reversed(list(zip(before[2:], after[2:], strict=True))) for amount in pair]
    return F.pad(x, flat, mode=_PAD_MODES[mode])


def depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    side = attributes["blocksize"]
    n, c, h, w = x.shape
    if attributes.get("mode", "DCR") == "DCR":
        blocks = x.reshape(n, side, side, c // side**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // side**2, side, side, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // side**2, h * side, w * side)


def space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    side = attributes["blocksize"]
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // side, side, w // side, side).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * side**2, h // side, w // side)


def resize(
    attributes: Attributes,
    x: Tensor,
    region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Resizes one axis after the other. Source: ONNX, operator Resize.

    Raises:
        NotImplementedError: for a coordinate rule, an aspect ratio policy or an antialiasing that is not in the table.
    """
    if attributes.get("antialias") or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotImplementedError("Resize with antialiasing, or which keeps the aspect ratio")
    axes = attributes.get("axes") or range(x.dim())
    if sizes is not None and sizes.numel():
        targets = integers(sizes)
        factors = [target / x.shape[axis] for axis, target in zip(axes, targets, strict=True)]
    elif scales is not None:
        factors = [float(scale) for scale in scales.tolist()]
        targets = [math.floor(x.shape[axis] * scale) for axis, scale in zip(axes, factors, strict=True)]
    else:
        raise ValueError("Resize has neither scales nor sizes")
    if any(target > LONGEST_RESIZED_AXIS for target in targets):
        raise NotImplementedError(f"Resize to more than {LONGEST_RESIZED_AXIS} positions")
    for axis, target, factor in zip(axes, targets, factors, strict=True):
        if target != x.shape[axis] or factor != 1:
            x = _resize_axis(attributes, x, axis, target, factor)
    return x


def _resize_axis(attributes: Attributes, x: Tensor, axis: int, target: int, factor: float) -> Tensor:
    """Returns a weighted sum of one, two or four neighbours for each new position."""
    size = x.shape[axis]
    columns: list[list[int]] = []
    weights: list[list[float]] = []
    for position in range(target):
        source = _source_position(attributes, position, size, target, factor)
        taps = _taps(attributes, source)
        if attributes.get("exclude_outside"):
            taps = [(at, weight) for at, weight in taps if 0 <= at < size]
            total = sum(weight for _, weight in taps)
            taps = [(at, weight / total) for at, weight in taps]
            taps += [(0, 0.0)] * (4 - len(taps))
        columns.append([min(max(at, 0), size - 1) for at, _ in taps])
        weights.append([weight for _, weight in taps])
    shape = [1] * x.dim()
    shape[axis] = target
    result = None
    for column, weight in zip(zip(*columns, strict=True), zip(*weights, strict=True), strict=True):
        picked = x.index_select(axis, torch.tensor(column, device=x.device))
        if len(weights[0]) == 1:
            return picked
        part = picked * torch.tensor(weight, dtype=x.dtype, device=x.device).reshape(shape)
        result = part if result is None else result + part
    return x if result is None else result


def _source_position(attributes: Attributes, position: int, size: int, target: int, factor: float) -> float:
    rule = attributes.get("coordinate_transformation_mode", "half_pixel")
    match rule:
        case "half_pixel":
            return (position + 0.5) / factor - 0.5
        case "pytorch_half_pixel":
            return (position + 0.5) / factor - 0.5 if target > 1 else 0.0
        case "half_pixel_symmetric":
            adjustment = target / (factor * size)
            return size / 2 * (1 - adjustment) + (position + 0.5) / factor - 0.5
        case "align_corners":
            return position * (size - 1) / (target - 1) if target > 1 else 0.0
        case "asymmetric":
            return position / factor
    raise NotImplementedError(f"Resize with the coordinates {rule}")


def _taps(attributes: Attributes, source: float) -> Sequence[tuple[int, float]]:
    """Returns the neighbours of a position between pixels, and their weights."""
    mode = attributes.get("mode", "nearest")
    below = math.floor(source)
    if mode == "nearest":
        rounding = attributes.get("nearest_mode", "round_prefer_floor")
        rounded = {
            "round_prefer_floor": math.ceil(source - 0.5),
            "round_prefer_ceil": math.floor(source + 0.5),
            "floor": below,
            "ceil": math.ceil(source),
        }[rounding]
        return [(rounded, 1.0)]
    ratio = source - below
    if mode == "linear":
        return [(below, 1 - ratio), (below + 1, ratio)]
    if mode == "cubic":
        a = attributes.get("cubic_coeff_a", -0.75)
        near = [(a + 2) * d**3 - (a + 3) * d**2 + 1 for d in (ratio, 1 - ratio)]
        far = [a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a for d in (ratio + 1, 2 - ratio)]
        return [(below - 1, far[0]), (below, near[0]), (below + 1, near[1]), (below + 2, far[1])]
    raise NotImplementedError(f"Resize in mode {mode}")
