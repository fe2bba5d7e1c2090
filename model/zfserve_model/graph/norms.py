"""Computes norms at inference: batch, instance, group, layer and local response norm.

`operations` lists them. Each function takes the attributes of the ONNX operator and its inputs, of which the first is
(N, C, spatial axes). torch's autograd differentiates it.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from zfserve_model.graph.windows import Attributes


def batch_norm(
    attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    factor = scale / torch.sqrt(variance + attributes.get("epsilon", 1e-5))
    shape = (1, -1, *(1,) * (x.dim() - 2))
    return x * factor.reshape(shape) + (shift - mean * factor).reshape(shape)


def instance_norm(attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normalised: Tensor = F.instance_norm(x, weight=scale, bias=shift, eps=attributes.get("epsilon", 1e-5))
    return normalised


def group_norm(attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normalised: Tensor = F.group_norm(x, attributes["num_groups"], scale, shift, attributes.get("epsilon", 1e-5))
    return normalised


def layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", -1) % x.dim()
    axes = list(range(axis, x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    deviation = torch.sqrt((centred * centred).mean(axes, keepdim=True) + attributes.get("epsilon", 1e-5))
    normalised = centred / deviation * scale
    return normalised if shift is None else normalised + shift


def local_response_norm(attributes: Attributes, x: Tensor) -> Tensor:
    """Divides by a power of the mean square over `size` neighbouring channels. Source: ONNX, operator LRN.

    The attribute `before`, which ONNX does not have, is the number of channels before the middle one: torch places
    windows of an even size differently.
    """
    size = attributes["size"]
    before = min(max(attributes.get("before", (size - 1) // 2), 0), size - 1)
    after = min(size - 1 - before, x.shape[1])  # A wider window, of a hostile file, would add zeros alone.
    before = min(before, x.shape[1])
    squares = F.pad((x * x).unsqueeze(1), (0, 0) * (x.dim() - 2) + (before, after))
    total = squares.unfold(2, before + 1 + after, 1).sum(-1).squeeze(1)
    scale: Tensor = attributes.get("bias", 1.0) + attributes.get("alpha", 1e-4) / size * total
    return x / torch.pow(scale, attributes.get("beta", 0.75))
