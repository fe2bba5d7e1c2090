"""Runs a graph, or a part of it, in PyTorch. The deconvnet, the attribution and the export's parity call it."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zfserve_model.graph.errors import UnsupportedNode
from zfserve_model.graph.graph import Graph, Node
from zfserve_model.graph.operations import OPERATIONS
from zfserve_model.graph.ordering import needed_nodes


def run(graph: Graph, values: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Computes the wanted tensors from the given ones. torch's autograd differentiates the result.

    It runs only the nodes between the given and the wanted tensors, so a run can start at a layer in the middle. It
    frees each tensor after its last use.

    Args:
        graph: the network.
        values: the tensors to start from by name, such as `graph.input`, float32 (N, 3, H, W).
        wanted: the names of the tensors to return.

    Raises:
        UnsupportedNode: a node in between has an operation that is not in the table.
        ValueError: a wanted tensor does not exist, or it depends on a tensor that is neither given nor computed.
    """
    nodes = needed_nodes(graph.nodes, wanted, values)
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    current = dict(values)
    for node in nodes:
        outputs = run_node(node, [_find(name, current, graph.constants) if name else None for name in node.inputs])
        current.update(zip(node.outputs, outputs, strict=False))
        for name in node.inputs:
            readers[name] -= 1
            if readers[name] == 0 and name not in wanted:
                current.pop(name, None)
    return {name: _find(name, current, graph.constants) for name in wanted}


def run_node(node: Node, inputs: Collection[Tensor | None]) -> tuple[Tensor, ...]:
    """Returns the outputs of one node.

    Raises:
        UnsupportedNode: its operation is not in the table.
    """
    if not node.supported:
        raise UnsupportedNode(f"the operation {node.operation} of {node.name!r} is not supported")
    outputs = OPERATIONS[node.operation].compute(node.attributes, *inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def move_graph(graph: Graph, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Graph:
    """Returns the graph with its weights on another device, or in another floating-point type.

    Sizes and limits, which operations read as numbers, stay on the CPU.
    """
    numbers = {
        name
        for node in graph.nodes
        if node.supported
        for position, name in enumerate(node.inputs)
        if position in OPERATIONS[node.operation].parameters
    }
    moved = {}
    for name, tensor in graph.constants.items():
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        moved[name] = tensor if name in numbers else tensor.to(device)
    return replace(graph, constants=moved)


def _find(name: str, current: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor:
    if name in current:
        return current[name]
    if name in constants:
        return constants[name]
    raise ValueError(f"the tensor {name!r} is neither given nor computed by the graph")
