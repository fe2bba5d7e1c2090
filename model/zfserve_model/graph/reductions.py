"""Computes reductions: sums, means, products and extremes over axes.

`operations` lists them. A reduction is a function of a tensor, the axes, and whether they stay with length 1.
"""

from collections.abc import Callable

from torch import Tensor

from zfserve_model.graph import shaping
from zfserve_model.graph.windows import Attributes

Reduction = Callable[[Tensor, list[int], bool], Tensor]
Compute = Callable[..., Tensor]


def over_axes(function: Reduction) -> Compute:
    """Returns a reduction of the axes that the second input names."""

    def compute(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = [] if axes is None else shaping.integers(axes)
        if not chosen:
            if attributes.get("noop_with_empty_axes"):
                return x
            chosen = list(range(x.dim()))
        return function(x, chosen, bool(attributes.get("keepdims", 1)))

    return compute


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def place_of(function: Callable[..., Tensor]) -> Compute:
    """Returns a function to the index of the largest or the smallest value along an axis."""

    def compute(attributes: Attributes, x: Tensor) -> Tensor:
        if attributes.get("select_last_index"):
            raise NotImplementedError("the last index of equal values")
        return function(x, attributes.get("axis", 0), bool(attributes.get("keepdims", 1)))

    return compute


def over_places(function: Reduction) -> Compute:
    """Returns a reduction of all axes after the channels, which stay with length 1."""

    def compute(attributes: Attributes, x: Tensor) -> Tensor:
        return function(x, list(range(2, x.dim())), True)

    return compute


def mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep)


def largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amax(axes, keepdim=keep)


def smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amin(axes, keepdim=keep)


def total(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep)


def sum_of_squares(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.square().sum(axes, keepdim=keep)


def l1_norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.abs().sum(axes, keepdim=keep)


def l2_norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return sum_of_squares(x, axes, keep).sqrt()
