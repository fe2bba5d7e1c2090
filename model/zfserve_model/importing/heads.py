"""Finds the logits and the features of a network: the tensors before its softmax and before its last linear layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from zfserve_model.graph.graph import Node

Shapes = Mapping[str, tuple[int, ...]]

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast"})


@dataclass
class Head:
    """Names the tensors at the end of a network.

    Attributes:
        nodes: the nodes of the network. Some at the end may be replaced, so that all three tensors are vectors.
        shapes: the shapes of all tensors.
        probabilities, logits, features: as in `Graph`.
    """

    nodes: list[Node]
    shapes: dict[str, tuple[int, ...]]
    probabilities: str
    logits: str
    features: str | None


def find_head(nodes: Sequence[Node], constants: Mapping[str, Tensor], shapes: Shapes, probabilities: str) -> Head:
    """Returns the ends of a network whose output is `probabilities`.

    The softmax may stand before a reshape, and work on (N, K, 1, 1). Then it moves behind one, so that the logits are a
    vector. A network that has no softmax at its end has its probabilities as its logits.
    """
    head = Head(list(nodes), dict(shapes), probabilities, probabilities, None)
    makers = {output: node for node in nodes for output in node.outputs}
    softmax = makers.get(_behind_reshapes(probabilities, makers, head.shapes))
    if softmax is not None and softmax.operation == "Softmax":
        _move_softmax(head, softmax)
    elif probabilities in makers and len(shapes.get(probabilities, (1, 1))) > 2 and _is_vector(probabilities, shapes):
        _flatten_scores(head, makers[probabilities])
    _find_features(head, constants)
    return head


def _behind_reshapes(name: str, makers: Mapping[str, Node], shapes: Shapes) -> str:
    """Returns the tensor that only reshapes separate from `name`, each a vector for one image."""
    while name in makers and makers[name].operation in _RESHAPES and _is_vector(makers[name].inputs[0], shapes):
        name = makers[name].inputs[0]
    return name


def _is_vector(name: str, shapes: Shapes) -> bool:
    """Returns True for a tensor that has at most one axis longer than one, besides the batch."""
    return name in shapes and sum(size > 1 for size in shapes[name][1:]) <= 1


def _move_softmax(head: Head, softmax: Node) -> None:
    source = softmax.inputs[0]
    if len(head.shapes.get(source, ())) == 2 and head.shapes[source] == head.shapes.get(head.probabilities):
        head.logits, head.probabilities = source, softmax.outputs[0]
        return
    if not _is_vector(source, head.shapes):
        return
    width = (1, math.prod(head.shapes[source][1:]))
    flatten = Node("Flatten", (source,), (f"{source}/flat",), {"axis": 1}, softmax.name, softmax.scopes)
    moved = replace(softmax, inputs=flatten.outputs, outputs=(f"{source}/softmax",), attributes={"axis": 1})
    head.nodes += [flatten, moved]
    head.shapes |= {flatten.outputs[0]: width, moved.outputs[0]: width}
    head.logits, head.probabilities = flatten.outputs[0], moved.outputs[0]


def _flatten_scores(head: Head, last: Node) -> None:
    """Makes a vector of scores (N, K, 1, 1) that have no softmax behind them."""
    source = head.probabilities
    flatten = Node("Flatten", (source,), (f"{source}/flat",), {"axis": 1}, last.name, last.scopes)
    head.nodes.append(flatten)
    head.shapes[flatten.outputs[0]] = (1, math.prod(head.shapes[source][1:]))
    head.probabilities = head.logits = flatten.outputs[0]


def _find_features(head: Head, constants: Mapping[str, Tensor]) -> None:
    """Sets the features: what enters the last linear layer, if only reshapes and additions stand behind that layer."""
    makers = {output: node for node in head.nodes for output in node.outputs}
    node = makers.get(head.logits)
    while node is not None:
        if node.operation in _RESHAPES or _adds_or_scales(node, constants) or node.operation == "GlobalAveragePool":
            node = makers.get(next(name for name in node.inputs if name not in constants))
            continue
        break
    if node is None or node.operation not in ("Gemm", "MatMul", "Conv") or node.inputs[0] in constants:
        return
    if node.inputs[1] not in constants:
        return
    source = node.inputs[0]
    shape = head.shapes.get(source)
    if shape is None or not _is_vector(source, head.shapes):
        return
    vector = source
    while vector in makers and makers[vector].operation in _RESHAPES and len(head.shapes.get(vector, ())) != 2:
        vector = makers[vector].inputs[0]
    if len(head.shapes.get(vector, ())) != 2 or vector in constants:
        vector = f"{source}/flat"
        width = max(shape[1:], default=1)
        head.nodes.append(Node("Flatten", (source,), (vector,), {"axis": 1}, node.name, node.scopes))
        head.shapes[vector] = (1, width)
    head.features = vector


def _adds_or_scales(node: Node, constants: Mapping[str, Tensor]) -> bool:
    return node.operation in ("Add", "Sub", "Mul", "Div") and sum(name in constants for name in node.inputs) == 1
