"""Removes the nodes of a graph that compute nothing: identities, casts, reshapes to the same shape, inverse transposes.

`importer` calls it before and after `patterns`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from zfserve_model.graph.graph import Node

Shapes = Mapping[str, tuple[int, ...]]

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_MOVES = _RESHAPES | {"Expand"}
"""Operations that do nothing where the shape stays the same."""


def simplify(
    nodes: Sequence[Node], constants: Mapping[str, Tensor], shapes: Shapes, outputs: Sequence[str]
) -> tuple[list[Node], list[str]]:
    """Returns the nodes without those that compute nothing, and the new names of the outputs.

    Args:
        nodes: the nodes in topological order.
        constants: the constants by name.
        shapes: the shapes of the other tensors, for one image.
        outputs: the names of tensors that are looked for afterwards. One may become another name of the same tensor.
    """
    names: dict[str, str] = {}
    makers: dict[str, Node] = {}
    kept = []
    for node in nodes:
        node = replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
        if node.operation == "Transpose" and node.inputs[0] in makers:
            node = _compose(makers[node.inputs[0]], node)
        if node.supported and _does_nothing(node, constants, shapes):
            names[node.outputs[0]] = node.inputs[0]
            continue
        if (source := _reshaped_back(node, makers, shapes)) is not None:
            names[node.outputs[0]] = source
            continue
        kept.append(node)
        makers.update(dict.fromkeys(node.outputs, node))
    return kept, [names.get(name, name) for name in outputs]


def used_constants(nodes: Sequence[Node], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the constants that the nodes read."""
    used: Collection[str] = {name for node in nodes for name in node.inputs}
    return {name: tensor for name, tensor in constants.items() if name in used}


def _does_nothing(node: Node, constants: Mapping[str, Tensor], shapes: Shapes) -> bool:
    source = node.inputs[0] if node.inputs else ""
    same_shape = source in shapes and shapes[source] == shapes.get(node.outputs[0])
    match node.operation:
        case "Identity":
            return True
        case "Dropout":
            return len(node.outputs) == 1
        case "Concat" | "Sum" | "Max" | "Min" | "Mean":
            return len(node.inputs) == 1
        case "Transpose":
            perm = node.attributes.get("perm")
            return isinstance(perm, list) and perm == sorted(perm)
        case "Pad":
            amounts = constants.get(node.inputs[1])
            return amounts is not None and not bool(amounts.any())
        case "Slice":
            steps = constants.get(node.inputs[4]) if len(node.inputs) > 4 else None
            return same_shape and (len(node.inputs) <= 4 or (steps is not None and bool((steps == 1).all())))
    return node.operation in _MOVES and same_shape


def _reshaped_back(node: Node, makers: Mapping[str, Node], shapes: Shapes) -> str | None:
    """Returns the tensor that has the shape of the node's output, if only reshapes lie between them. None otherwise."""
    wanted = shapes.get(node.outputs[0])
    while wanted is not None and node.operation in _RESHAPES and node.inputs[0] in makers:
        node = makers[node.inputs[0]]
        if node.operation in _RESHAPES and shapes.get(node.inputs[0]) == wanted:
            return node.inputs[0]
    return None


def _compose(first: Node, second: Node) -> Node:
    """Returns one Transpose that does the work of two in a row."""
    perms = first.attributes.get("perm"), second.attributes.get("perm")
    if first.operation != "Transpose" or not isinstance(perms[0], list) or not isinstance(perms[1], list):
        return second
    return replace(second, inputs=first.inputs, attributes={"perm": [perms[0][axis] for axis in perms[1]]})
