"""Recognises operations that an exporter has taken apart, and puts one node in their place.

`importer` calls it after folding. Each recogniser looks at the last node of a pattern and returns the node that
computes the same, or None. What the pattern leaves unused is removed afterwards, so parts that other nodes read stay.

The table of rules needs this: `Clip` from 0 to 6 rectifies in MobileNetV2, and is a part of a gate in MobileNetV3.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zfserve_model.graph.graph import Node
from zfserve_model.graph.wiring import Recogniser, Wiring, near
from zfserve_model.importing.activations import activation
from zfserve_model.importing.norm_patterns import group_norm, layer_norm, local_response_norm


def recognise(nodes: Sequence[Node], constants: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> list[Node]:
    """Returns the nodes with one node for each pattern. Adds the constants that new nodes need to `constants`.

    The nodes that the new ones replace are still there, and nothing reads them. They precede the new ones, so the order
    stays topological.
    """
    wiring = Wiring(constants, shapes, {}, {})
    for node in nodes:
        for name in node.inputs:
            wiring.readers.setdefault(name, []).append(node)
    result = []
    for node in nodes:
        found = _first_match(wiring, node) if node.supported and len(node.outputs) == 1 else None
        while found is not None:
            node = found
            found = _first_match(wiring, node)
        wiring.makers.update(dict.fromkeys(node.outputs, node))
        result += [*wiring.inserted, node]
        wiring.inserted.clear()
    return result


def _first_match(wiring: Wiring, node: Node) -> Node | None:
    wiring.makers[node.outputs[0]] = node
    for recogniser in _RECOGNISERS.get(node.operation, ()):
        found = recogniser(wiring, node)
        if found is not None:
            return found
    return None


def _replaced(node: Node, operation: str, inputs: Iterable[str], **attributes: object) -> Node:
    return replace(node, operation=operation, inputs=tuple(inputs), attributes=attributes)


def _rectifier(wiring: Wiring, node: Node) -> Node | None:
    """Recognises Max(x, 0) and Clip(x, 0, infinity) as Relu, and Min(Relu(x), c) as Clip(x, 0, c)."""
    if node.operation == "Clip":
        return _replaced(node, "Relu", node.inputs[:1]) if wiring.limits(node) == (0.0, math.inf) else None
    if len(node.inputs) != 2:
        return None
    for name, other in (node.inputs, node.inputs[::-1]):
        limit = wiring.number(other)
        if node.operation == "Max" and limit == 0:
            return _replaced(node, "Relu", [name])
        relu = wiring.maker(name, "Relu")
        if node.operation == "Min" and limit is not None and limit > 0 and relu is not None:
            zero = wiring.constant(f"{node.outputs[0]}/zero", torch.tensor(0.0))
            return _replaced(node, "Clip", [relu.inputs[0], zero, other])
    return None


def _hard_sigmoid(wiring: Wiring, node: Node) -> Node | None:
    """Recognises c * clip(a x + b, 0, 1 / c), such as relu6(x + 3) / 6, and a bare clip(x, 0, 1) that gates a tensor.

    Taken for ReLU6, the gates of MobileNetV3 would rectify signals: the cosine to the right projection drops to 0.8.
    """
    factor, clipped = wiring.scaled(node.outputs[0])
    clip = node if node.operation == "Clip" else wiring.maker(clipped, "Clip")
    if clip is None or factor <= 0:
        return None
    low, high = wiring.limits(clip)
    if low != 0 or not near(factor * high, 1):
        return None
    shift, inner = wiring.shifted(clip.inputs[0])
    slope, source = wiring.scaled(inner)
    if shift == 0 and not (wiring.is_gate(node.outputs[0])):
        return None
    return _replaced(node, "HardSigmoid", [source], alpha=slope * factor, beta=shift * factor)


def _linear(wiring: Wiring, node: Node) -> Node | None:
    """Recognises a MatMul of a vector with weights as Gemm, and the Add of a bias behind it."""
    if node.operation == "MatMul":
        source, weight = node.inputs
        is_linear = len(wiring.shapes.get(source, ())) == 2 and source not in wiring.constants
        weights = wiring.constants.get(weight)
        return (
            _replaced(node, "Gemm", node.inputs) if is_linear and weights is not None and weights.dim() == 2 else None
        )
    for product, bias in (node.inputs, node.inputs[::-1]):
        gemm, weights = wiring.maker(product, "Gemm"), wiring.constants.get(bias)
        if gemm is None or len(gemm.inputs) != 2 or weights is None or len(wiring.readers.get(product, [])) > 1:
            continue
        if weights.dim() <= 2 and wiring.shapes.get(node.outputs[0]) == wiring.shapes.get(product):
            return replace(gemm, inputs=(*gemm.inputs, bias), outputs=node.outputs)
    return None


def _global_average(wiring: Wiring, node: Node) -> Node | None:
    """Recognises the mean over all axes after the channels, if they stay."""
    axes = wiring.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    rank = len(wiring.shapes.get(node.inputs[0], ()))
    if axes is None or rank < 3 or not node.attributes.get("keepdims", 1):
        return None
    spatial = sorted(int(axis) % rank for axis in axes.tolist()) == list(range(2, rank))
    return _replaced(node, "GlobalAveragePool", node.inputs[:1]) if spatial else None


_ACTIVATIONS: tuple[Recogniser, ...] = (activation, _hard_sigmoid)
_RECOGNISERS: dict[str, tuple[Recogniser, ...]] = {
    "Clip": (_rectifier, _hard_sigmoid),
    "Max": (_rectifier,),
    "Min": (_rectifier,),
    "Mul": (*_ACTIVATIONS, local_response_norm, layer_norm),
    "Div": (*_ACTIVATIONS, local_response_norm, layer_norm),
    "Reshape": (group_norm,),
    "Log": (activation,),
    "MatMul": (_linear,),
    "Add": (_linear, activation),
    "ReduceMean": (_global_average,),
}
