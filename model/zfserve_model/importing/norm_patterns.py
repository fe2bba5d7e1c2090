"""Recognises norms that an exporter has taken apart: local response, layer, instance and group norm.

`patterns` calls it. Each function recognises the division alone. The scale and the shift behind it stay a
multiplication and an addition of constants.
"""

import math
from dataclasses import replace

import torch

from zfserve_model.graph.graph import Node
from zfserve_model.graph.wiring import Wiring

_MEANS = ("ReduceMean", "GlobalAveragePool")
_MOVES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def local_response_norm(wiring: Wiring, node: Node) -> Node | None:
    """Recognises x / (k + alpha * m) ** beta, where an AveragePool makes m, the mean of x² over channels."""
    for source, denominator in _quotients(node):
        power = wiring.maker(denominator, "Pow")
        exponent = wiring.number(power.inputs[1]) if power is not None else None
        if power is None or exponent is None or (exponent > 0) != (node.operation == "Div"):
            continue
        bias, inner = wiring.shifted(power.inputs[0])
        alpha, mean = wiring.scaled(inner)
        channels = _channel_window(wiring, mean, source)
        if channels is not None:
            size, before = channels
            attributes = {"size": size, "alpha": alpha, "beta": abs(exponent), "bias": bias}
            if before != (size - 1) // 2:
                attributes["before"] = before
            return replace(node, operation="LRN", inputs=(source,), attributes=attributes)
    return None


def layer_norm(wiring: Wiring, node: Node) -> Node | None:
    """Recognises (x - mean) / sqrt(variance + epsilon) over the last axes, over the channels, or over the places."""
    for centred, denominator in _quotients(node):
        deviation = _square_root(wiring, denominator, inverse=node.operation == "Mul")
        difference = wiring.maker(centred, "Sub")
        if deviation is None or difference is None:
            continue
        epsilon, variance_name = wiring.shifted(deviation)
        source, mean = difference.inputs[0], wiring.maker(difference.inputs[1], *_MEANS)
        variance = wiring.maker(variance_name, *_MEANS)
        if mean is None or variance is None or mean.inputs[0] != source:
            continue
        axes, rank = _axes(wiring, mean), len(wiring.shapes.get(source, ()))
        if rank and axes == _axes(wiring, variance) and _is_square(wiring, variance.inputs[0], centred):
            return _norm_over(wiring, node, source, axes, epsilon)
    return None


def group_norm(wiring: Wiring, node: Node) -> Node | None:
    """Recognises an InstanceNormalization between two Reshapes, of which the first puts groups of channels together."""
    norm = wiring.maker(node.inputs[0], "InstanceNormalization")
    first = wiring.maker(norm.inputs[0], "Reshape") if norm is not None else None
    if norm is None or first is None:
        return None
    source = first.inputs[0]
    before, inside = wiring.shapes.get(source), wiring.shapes.get(first.outputs[0])
    if before is None or inside is None or before != wiring.shapes.get(node.outputs[0]):
        return None
    scale, shift = (wiring.constants.get(name) for name in norm.inputs[1:3])
    neutral = scale is not None and shift is not None and bool((scale == 1).all()) and not bool(shift.any())
    if len(inside) != 3 or before[1] % inside[1] or not neutral:
        return None
    name = node.outputs[0]
    scale_name = wiring.constant(f"{name}/scale", torch.ones(before[1]))
    shift_name = wiring.constant(f"{name}/shift", torch.zeros(before[1]))
    attributes = {"num_groups": inside[1], "epsilon": norm.attributes.get("epsilon", 1e-5)}
    return replace(node, operation="GroupNormalization", inputs=(source, scale_name, shift_name), attributes=attributes)


def _quotients(node: Node) -> list[tuple[str, str]]:
    """Returns the pairs (numerator, denominator) that a Div, or a Mul by an inverse, may stand for."""
    if len(node.inputs) != 2:
        return []
    pair = (node.inputs[0], node.inputs[1])
    return [pair] if node.operation == "Div" else [pair, pair[::-1]]


def _square_root(wiring: Wiring, name: str, *, inverse: bool) -> str | None:
    """Returns x if the tensor is the square root of x, or the inverse of the square root of x."""
    if inverse:
        reciprocal = wiring.maker(name, "Reciprocal")
        power = wiring.maker(name, "Pow")
        if power is not None and wiring.number(power.inputs[1]) == -0.5:
            return power.inputs[0]
        division = wiring.maker(name, "Div")
        if division is not None and wiring.number(division.inputs[0]) == 1:
            name = division.inputs[1]
        elif reciprocal is not None:
            name = reciprocal.inputs[0]
        else:
            return None
    root, power = wiring.maker(name, "Sqrt"), wiring.maker(name, "Pow")
    if root is not None:
        return root.inputs[0]
    return power.inputs[0] if power is not None and wiring.number(power.inputs[1]) == 0.5 else None


def _is_square(wiring: Wiring, name: str, source: str) -> bool:
    node = wiring.maker(name, "Mul", "Pow")
    if node is None or node.inputs[0] != source:
        return False
    return node.inputs[1] == source if node.operation == "Mul" else wiring.number(node.inputs[1]) == 2


def _axes(wiring: Wiring, node: Node) -> list[int]:
    """Returns the axes of a reduction that keeps them, in ascending order. Empty for another."""
    axes = wiring.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    rank = len(wiring.shapes.get(node.inputs[0], ()))
    if node.operation == "GlobalAveragePool":
        return list(range(2, rank))
    if axes is None or not rank or not node.attributes.get("keepdims", 1):
        return []
    return sorted(int(axis) % rank for axis in axes.reshape(-1).tolist())


def _norm_over(wiring: Wiring, node: Node, source: str, axes: list[int], epsilon: float) -> Node | None:
    shape, name = wiring.shapes[source], node.outputs[0]
    rank = len(shape)
    if axes and axes == list(range(axes[0], rank)) and axes[0] > 0 and not (rank > 3 and axes[0] == 2):
        scale = wiring.constant(f"{name}/scale", torch.ones(shape[axes[0] :]))
        return replace(
            node,
            operation="LayerNormalization",
            inputs=(source, scale),
            attributes={"axis": axes[0], "epsilon": epsilon},
        )
    if rank > 3 and axes == list(range(2, rank)):
        scale = wiring.constant(f"{name}/scale", torch.ones(shape[1]))
        shift = wiring.constant(f"{name}/shift", torch.zeros(shape[1]))
        return replace(
            node, operation="InstanceNormalization", inputs=(source, scale, shift), attributes={"epsilon": epsilon}
        )
    if axes == [1] and rank > 2:
        return _norm_over_channels(wiring, node, source, epsilon)
    return None


def _norm_over_channels(wiring: Wiring, node: Node, source: str, epsilon: float) -> Node:
    """Returns a Transpose whose inputs are the norm over the last axis of the transposed map."""
    shape, name = wiring.shapes[source], node.outputs[0]
    last = [0, *range(2, len(shape)), 1]
    first = [0, len(shape) - 1, *range(1, len(shape) - 1)]
    scale = wiring.constant(f"{name}/scale", torch.ones(shape[1]))
    turned, normed = f"{name}/channels_last", f"{name}/normalised"
    before = replace(node, operation="Transpose", inputs=(source,), outputs=(turned,), attributes={"perm": last})
    attributes = {"axis": -1, "epsilon": epsilon}
    norm = replace(
        node, operation="LayerNormalization", inputs=(turned, scale), outputs=(normed,), attributes=attributes
    )
    wiring.inserted += [before, norm]
    for each in (turned, normed):
        wiring.shapes[each] = tuple(shape[axis] for axis in last)
    return replace(node, operation="Transpose", inputs=(normed,), attributes={"perm": first})


def _channel_window(wiring: Wiring, name: str, source: str) -> tuple[int, int] | None:
    """Returns the number of channels whose mean square a tensor is, and how many precede the middle one.

    None if the tensor is something else.
    """
    pool: Node | None = None
    before = 0
    while True:
        node = wiring.maker(name, *_MOVES, "Pad", "AveragePool")
        if node is None:
            break
        if node.operation == "AveragePool":
            if pool is not None:
                return None
            pool, before = node, before + _pads_before(node)
        elif node.operation == "Pad":
            amounts = wiring.constants.get(node.inputs[1])
            if pool is None or amounts is None or len(node.inputs) > 3 or amounts.numel() < 6:
                return None
            before += int(amounts[2])
        name = node.inputs[0]
    if pool is None or not _is_square(wiring, name, source):
        return None
    kernel = pool.attributes.get("kernel_shape")
    shape, channels = wiring.shapes.get(pool.outputs[0], ()), wiring.shapes.get(source, (0, 0))[1]
    if not isinstance(kernel, list) or math.prod(kernel) != kernel[0] or len(shape) < 3 or shape[1:3] != (1, channels):
        return None
    size = int(kernel[0])
    return (size, before) if before in (size // 2, (size - 1) // 2) else None


def _pads_before(pool: Node) -> int:
    pads = pool.attributes.get("pads")
    counted = pool.attributes.get("count_include_pad", 0)
    return int(pads[0]) if isinstance(pads, list) and counted else 0
