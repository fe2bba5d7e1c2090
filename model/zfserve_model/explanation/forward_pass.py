"""Runs a graph forward and keeps what the backward steps need. `zfserve_model.explanation.deconvnet` calls it.

A max-pool keeps its switches, a global max-pool the place of each maximum, and a product with a gate the gate.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from zfserve_model.explanation.backward_steps import reduced_axes
from zfserve_model.explanation.rules import path_below
from zfserve_model.graph.execution import run_node
from zfserve_model.graph.graph import Graph, Node
from zfserve_model.graph.ordering import needed_nodes
from zfserve_model.graph.windows import pad_axes, window
from zfserve_model.layers.boxes import Step


def run_and_keep(graph: Graph, images: Tensor, tensors: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Runs `images` through the nodes that `tensors` need.

    Args:
        images: float (1, 3, height, width).

    Returns:
        The values of `tensors`; and what is kept for the backward steps, by the first output of each node.

    Raises:
        UnsupportedNode: a node that `tensors` need cannot run.
    """
    passed = {
        node.outputs[0]: (node.operation, inputs)
        for tensor in tensors
        for node, inputs in path_below(graph, tensor)
        if inputs
    }
    nodes = needed_nodes(graph.nodes, tensors)
    last_use = {name: node for node in nodes for name in node.inputs}
    values, kept = {graph.input: images}, {}
    for node in nodes:
        inputs = [(values[name] if name in values else graph.constants[name]) if name else None for name in node.inputs]
        outputs, remembered = _compute(graph, node, inputs, *passed.get(node.outputs[0], ("", ())))
        values.update(zip(node.outputs, outputs, strict=False))
        if remembered is not None:
            kept[node.outputs[0]] = remembered
        for name in node.inputs:
            if last_use[name] is node and name not in tensors:
                values.pop(name, None)
    return {tensor: values[tensor] for tensor in tensors}, kept


def _compute(
    graph: Graph, node: Node, inputs: list[Tensor | None], passage: str, followed: tuple[int, ...]
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Returns the outputs of the node, and what its backward step needs, if it needs anything.

    Args:
        passage: the operation that a signal takes the node for. "" where no signal passes it.
        followed: the places of the inputs that a signal goes on to.
    """
    first = inputs[0]
    if passage == "MaxPool":
        assert first is not None
        pooled, switches = pool_with_switches(node.attributes, first)
        return (pooled,), switches
    outputs = run_node(node, inputs)
    if passage in ("GlobalMaxPool", "ReduceMax"):
        assert first is not None
        return outputs, first_maximum(first, reduced_axes(Step(graph, node, node.outputs[0], 0)))
    if passage == "Mul" and len(followed) == 1 and node.inputs[1 - followed[0]] not in graph.constants:
        return outputs, inputs[1 - followed[0]]
    return outputs, None


def pool_with_switches(attributes: Mapping[str, object], activations: Tensor) -> tuple[Tensor, Tensor]:
    """Max-pools and records where each maximum was.

    Args:
        attributes: the attributes of ONNX's MaxPool.
        activations: float (N, channels, ...), with one to three spatial axes.

    Returns:
        The pooled activations and the switches. A switch is the place of the first maximum within its pooling window,
        counted row by row. It is relative, so it stays valid in any window that is cut out of the map. It is uint8
        where a window has at most 256 places, else int32.
    """
    frame = window(attributes, activations.shape[2:])
    axes = len(frame.kernel)
    before: Sequence[int] = frame.before
    if not frame.symmetric or any(2 * pad > size for pad, size in zip(before, frame.kernel, strict=True)):
        after = [pad + over for pad, over in zip(frame.after, frame.overhang, strict=True)]
        activations, before = pad_axes(activations, before, after, -math.inf), [0] * axes
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[axes - 1]
    pooled, places = pool(activations, frame.kernel, frame.strides, list(before), frame.dilations, return_indices=True)
    switches = torch.zeros_like(places)
    pitch, area = 1, 1
    for axis in reversed(range(axes)):
        size, kernel = activations.shape[2 + axis], frame.kernel[axis]
        first = torch.arange(pooled.shape[2 + axis], device=places.device) * frame.strides[axis] - before[axis]
        offset = places // pitch % size - first.view(-1, *[1] * (axes - 1 - axis))
        switches += offset // frame.dilations[axis] * area
        pitch, area = pitch * size, area * kernel
    return pooled, switches.to(torch.uint8 if area <= 256 else torch.int32)


def first_maximum(activations: Tensor, axes: Sequence[int]) -> Tensor:
    """Returns True at the first maximum over `axes`, in row-major order, bool in the shape of `activations`."""
    kept = [axis for axis in range(activations.ndim) if axis not in axes]
    moved = activations.permute(*kept, *axes)
    flat = moved.flatten(len(kept))
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, flat.argmax(-1, keepdim=True), True)
    order = [*kept, *axes]
    return mask.view(moved.shape).permute([order.index(axis) for axis in range(activations.ndim)])
