"""Computes activations that have attributes or limits, and the softmax.

`operations` lists them. Each function takes the attributes of the ONNX operator and its inputs. torch's autograd
differentiates it.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from zfserve_model.graph.windows import Attributes


def clip(attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is None and high is None:
        return x
    return x.clamp(None if low is None else low.item(), None if high is None else high.item())


def softmax(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", -1) % x.dim()
    if attributes.get("flattened"):  # Before opset 13, the axis and all after it are one.
        return x.flatten(axis).softmax(-1).reshape(x.shape)
    return x.softmax(axis)


def log_softmax(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", -1) % x.dim()
    if attributes.get("flattened"):
        return x.flatten(axis).log_softmax(-1).reshape(x.shape)
    return x.log_softmax(axis)


def gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=attributes.get("approximate", "none"))


def elu(attributes: Attributes, x: Tensor) -> Tensor:
    return F.elu(x, attributes.get("alpha", 1.0))


def selu(attributes: Attributes, x: Tensor) -> Tensor:
    alpha, gamma = attributes.get("alpha", 1.6732632423543772), attributes.get("gamma", 1.0507009873554805)
    selu: Tensor = gamma * torch.where(x > 0, x, alpha * (x.clamp(max=0).exp() - 1))
    return selu


def leaky_relu(attributes: Attributes, x: Tensor) -> Tensor:
    return F.leaky_relu(x, attributes.get("alpha", 0.01))


def p_relu(attributes: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    scaled: Tensor = attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5)
    return scaled.clamp(0, 1)


def thresholded_relu(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.where(x > attributes.get("alpha", 1.0), x, torch.zeros_like(x))


def swish(attributes: Attributes, x: Tensor) -> Tensor:
    return x * torch.sigmoid(attributes.get("alpha", 1.0) * x)
