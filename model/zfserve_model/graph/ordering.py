"""Puts nodes in topological order, and finds those that an output needs.

`importer` and `folding` call it. All walks use a queue, so a deep network cannot exhaust the stack.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.graph import Node


def sort_nodes(nodes: Sequence[Node], known: Collection[str]) -> list[Node]:
    """Returns the nodes so that each follows those whose outputs it reads. Keeps the given order where it can.

    Args:
        nodes: the nodes in any order.
        known: the names of the inputs and the constants.

    Raises:
        GraphError: two nodes compute one tensor, a node reads a tensor that nothing computes, or nodes form a cycle.
    """
    maker: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for output in node.outputs:
            if output and (output in maker or output in known):
                raise GraphError(f"two operations compute the tensor {output!r}; export the file again")
            maker[output] = position
    readers: list[list[int]] = [[] for _ in nodes]
    missing = [0] * len(nodes)
    for position, node in enumerate(nodes):
        for name in {name for name in node.inputs if name and name not in known}:
            if name not in maker:
                raise GraphError(
                    f"the operation {node.operation} reads the tensor {name!r}, which nothing computes; "
                    "export the file again"
                )
            readers[maker[name]].append(position)
            missing[position] += 1
    if all(maker[name] < position for position, node in enumerate(nodes) for name in node.inputs if name in maker):
        return list(nodes)
    ready = deque(position for position, count in enumerate(missing) if count == 0)
    ordered = []
    while ready:
        position = ready.popleft()
        ordered.append(nodes[position])
        for reader in readers[position]:
            missing[reader] -= 1
            if missing[reader] == 0:
                ready.append(reader)
    if len(ordered) < len(nodes):
        stuck = next(node for node, count in zip(nodes, missing, strict=True) if count)
        raise GraphError(
            f"the operation {stuck.operation} {stuck.name!r} depends on its own output; export the file again"
        )
    return ordered


def drop_unread_outputs(nodes: Sequence[Node], wanted: Collection[str]) -> list[Node]:
    """Returns the nodes without the outputs at their ends that nobody reads, such as the mask of Dropout."""
    read = {name for node in nodes for name in node.inputs} | set(wanted)
    shorter = []
    for node in nodes:
        outputs = list(node.outputs)
        while len(outputs) > 1 and outputs[-1] not in read:
            outputs.pop()
        shorter.append(replace(node, outputs=tuple(outputs)) if len(outputs) < len(node.outputs) else node)
    return shorter


def needed_nodes(nodes: Sequence[Node], wanted: Iterable[str], given: Collection[str] = ()) -> list[Node]:
    """Returns the nodes, in their order, that compute the wanted tensors from the given ones and from constants."""
    needed = set(wanted) - set(given)
    kept = []
    for node in reversed(nodes):
        if any(output in needed for output in node.outputs):
            kept.append(node)
            needed.update(name for name in node.inputs if name and name not in given)
    return kept[::-1]
