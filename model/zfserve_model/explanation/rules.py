"""Says how a projection passes each operation on the way down, and which operations it cannot pass.

This table is the only place that connects an operation with its backward step. `deconvnet` follows it.
The layer table, export and the worker ask it for the rule of a layer and for what is in the way.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from zfserve_model.explanation import backward_steps as steps
from zfserve_model.explanation import window_steps
from zfserve_model.graph.graph import Graph, Node
from zfserve_model.graph.ordering import needed_nodes
from zfserve_model.graph.pointwise import pointwise_sources

Kind = Literal["transpose", "rectify", "extended", "pass over"]
Followed = Literal["first", "terms", "factor"]


class OperationRule(NamedTuple):
    """Holds the rule of one operation.

    Attributes:
        kind: "transpose" is the exact transpose of the operation. "rectify" is the paper's rule for the ReLU.
            "extended" is the same for another activation, which is a convention of zfserve. "pass over" leaves out the
            division by what the image's statistics give.
        step: the function that carries signals from an output to an input.
        followed: which inputs get the signal: the first one alone, so the others have to be constants; all terms of a
            sum; or the factor of a product that is no gate.
    """

    kind: Kind
    step: steps.BackwardStep
    followed: Followed = "first"


UNNAMED = "UnnamedActivation"
"""Stands for a product or a quotient of functions of one tensor, such as x * tanh(x), which is an activation too."""

_RECTIFY = OperationRule("rectify", steps.rectify)
_EXTENDED = OperationRule("extended", steps.rectify)
_PASS_OVER = OperationRule("pass over", steps.pass_over)
_PASS_OVER_BUT_SCALE = OperationRule("pass over", steps.scale_norm)
_IDENTITY = OperationRule("transpose", steps.pass_over)
_RESHAPE = OperationRule("transpose", steps.reshape)
_BY_AUTOGRAD = OperationRule("transpose", steps.transpose_by_autograd)

RULES: dict[str, OperationRule] = {
    "Conv": OperationRule("transpose", window_steps.convolve_transposed),
    "ConvTranspose": _BY_AUTOGRAD,
    "Gemm": OperationRule("transpose", steps.multiply_matrix),
    "MatMul": OperationRule("transpose", steps.multiply_matrix),
    "BatchNormalization": OperationRule("transpose", steps.scale_batch_norm),
    # Pools.
    "MaxPool": OperationRule("transpose", window_steps.unpool),
    "GlobalMaxPool": OperationRule("transpose", steps.place_maximum),
    "ReduceMax": OperationRule("transpose", steps.place_maximum),
    "AveragePool": OperationRule("transpose", window_steps.spread_window_average),
    "GlobalAveragePool": OperationRule("transpose", steps.spread_mean),
    "ReduceMean": OperationRule("transpose", steps.spread_mean),
    "ReduceSum": OperationRule("transpose", steps.spread_sum),
    # Branches.
    "Add": OperationRule("transpose", steps.add, "terms"),
    "Sum": OperationRule("transpose", steps.add, "terms"),
    "Sub": OperationRule("transpose", steps.subtract, "terms"),
    "Mean": OperationRule("transpose", steps.average_terms, "terms"),
    "Concat": OperationRule("transpose", steps.concatenated, "terms"),
    "Split": OperationRule("transpose", steps.split),
    # Scales and gates.
    "Mul": OperationRule("transpose", steps.multiply, "factor"),
    "Div": OperationRule("transpose", steps.divide),
    "Neg": OperationRule("transpose", steps.negate),
    # Movement of values.
    "Identity": _IDENTITY,
    "Dropout": _IDENTITY,
    "Cast": _IDENTITY,
    "Reshape": _RESHAPE,
    "Flatten": _RESHAPE,
    "Squeeze": _RESHAPE,
    "Unsqueeze": _RESHAPE,
    "Transpose": OperationRule("transpose", steps.transpose),
    "Slice": OperationRule("transpose", steps.place_slice),
    "Pad": OperationRule("transpose", steps.crop_padding),
    "Gather": _BY_AUTOGRAD,
    "Resize": _BY_AUTOGRAD,
    "DepthToSpace": _BY_AUTOGRAD,
    "SpaceToDepth": _BY_AUTOGRAD,
    "Expand": _BY_AUTOGRAD,
    "Tile": _BY_AUTOGRAD,
    # Rectifiers. Clip is one if its lower limit is zero.
    "Relu": _RECTIFY,
    "Clip": _RECTIFY,
    # Other activations.
    "Silu": _EXTENDED,
    "Swish": _EXTENDED,
    "HardSwish": _EXTENDED,
    "Gelu": _EXTENDED,
    "LeakyRelu": _EXTENDED,
    "PRelu": _EXTENDED,
    "Elu": _EXTENDED,
    "Selu": _EXTENDED,
    "Celu": _EXTENDED,
    "Mish": _EXTENDED,
    "Softplus": _EXTENDED,
    "ThresholdedRelu": _EXTENDED,
    UNNAMED: _EXTENDED,
    # Norms whose statistics depend on the image. Their scale is a multiplication by a constant like any other.
    "LRN": _PASS_OVER,
    "LayerNormalization": _PASS_OVER_BUT_SCALE,
    "GroupNormalization": _PASS_OVER_BUT_SCALE,
    "InstanceNormalization": _PASS_OVER_BUT_SCALE,
}

_SQUASHING = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh")


@dataclass(frozen=True)
class ProjectionRule:
    """Says how the projections of a tensor are computed.

    Attributes:
        rule: "paper" if all activations on the way to the image are ReLUs, with or without an upper limit.
            "extended" if some are other functions, whose backward step is a convention of zfserve.
        nodes: the names of these other functions, in forward order.
        obstacle: a sentence that names the first node which a projection cannot pass. Empty if there is none.
    """

    rule: Literal["paper", "extended"]
    nodes: tuple[str, ...] = ()
    obstacle: str = ""


def projection_rule(graph: Graph, tensor: str) -> ProjectionRule:
    """Returns the rule of projections from `tensor`."""
    extended: list[str] = []
    for node, inputs in path_below(graph, tensor):
        if not inputs:
            return ProjectionRule("paper", (), f"no projection can pass the node {node_title(node)}")
        if RULES[node.operation].kind == "extended":
            extended.append(node.name or node.outputs[0])
    return ProjectionRule("extended" if extended else "paper", tuple(reversed(extended)))


def forward_obstacle(graph: Graph, start: str | None) -> str:
    """Returns a sentence that names the first node which cannot run on the way to the logits. "" if all of them can.

    Args:
        start: the tensor that is given. None stands for the image.
    """
    for node in needed_nodes(graph.nodes, [graph.logits], () if start is None else (start,)):
        if not node.supported:
            return f"PyTorch cannot run the node {node_title(node)}"
    return ""


def path_below(graph: Graph, tensor: str) -> Iterator[tuple[Node, tuple[int, ...]]]:
    """Yields each node that a signal from `tensor` passes, from the top down, as `passage` returns it."""
    reached = {tensor}
    for node in reversed(graph.nodes):
        if not reached.isdisjoint(node.outputs):
            passed, inputs = passage(graph, node)
            reached.update(passed.inputs[index] for index in inputs)
            yield passed, inputs


def passage(graph: Graph, node: Node) -> tuple[Node, tuple[int, ...]]:
    """Returns the node as a signal passes it, and the places of the inputs that the signal goes on to.

    The node is the given one, or an activation that takes the place of several nodes. Without inputs to go on to, it is
    an obstacle.
    """
    if node.operation in ("Mul", "Div"):
        source = _activated(graph, node)
        node = node if source is None else replace(node, operation=UNNAMED, inputs=(source,), attributes={})
    return node, _followed_inputs(graph, node)


def _activated(graph: Graph, node: Node) -> str | None:
    """Returns x if the node is a product or a quotient of two functions of the tensor x, place by place.

    One factor alone is no gate then. To take it as constant would be as wrong as to pass SiLU, x * sigmoid(x), so.
    """
    if any(name in graph.constants for name in node.inputs):
        return None
    before = reversed(graph.nodes[: graph.nodes.index(node)])
    for source, _ in pointwise_sources(node, before, graph.constants):
        if graph.shapes.get(source) == graph.shapes.get(node.outputs[0]):
            return source
    return None


def _followed_inputs(graph: Graph, node: Node) -> tuple[int, ...]:
    """Returns the places of the inputs that a signal goes on to. None of them if a projection cannot pass the node."""
    rule = RULES.get(node.operation)
    inputs = tuple(index for index, name in enumerate(node.inputs) if name and name not in graph.constants)
    if rule is None or not node.supported or not _keeps_batch(graph, node, inputs):
        return ()
    if node.operation == "Clip" and not _clips_from_zero(graph, node):
        return ()
    match rule.followed:
        case "terms":
            return inputs if rule.step is steps.concatenated or _ranks_equal(graph, node, inputs) else ()
        case "factor" if len(inputs) == 2:
            gate = gate_index(graph, node)
            return () if gate is None or not _ranks_equal(graph, node, inputs) else (1 - gate,)
        case "factor":
            return inputs if _ranks_equal(graph, node, inputs) else ()
        case _:
            return inputs if inputs == (0,) else ()


def gate_index(graph: Graph, node: Node) -> int | None:
    """Returns the place of the gate in a product of two tensors that depend on the image. None if neither is a gate.

    A gate scales the other factor. It comes from a function that squashes its values, such as the sigmoid, or has one
    value for a whole map of the other.
    """
    first, second = (graph.shapes.get(name) for name in node.inputs)
    if first is None or second is None:
        return None
    squashed = [_is_squashed(graph, name) for name in node.inputs]
    if squashed[0] != squashed[1]:
        return squashed.index(True)
    sizes = [math.prod(shape[2:]) for shape in (first, second)]
    return None if sizes[0] == sizes[1] else sizes.index(min(sizes))


def node_title(node: Node) -> str:
    """Returns the node's name in quotes, if it has one, and its operation."""
    return f"{node.name!r} ({node.operation})" if node.name else f"{node.outputs[0]!r} ({node.operation})"


def _is_squashed(graph: Graph, name: str) -> bool:
    """Returns True if a sigmoid or a like function computes the tensor, whatever constant changes follow it."""
    node = graph.producers.get(name)
    while node is not None and node.operation not in _SQUASHING:
        rule = RULES.get(node.operation)
        if rule is None or rule.kind != "transpose" or node.operation in ("Conv", "Gemm", "MatMul"):
            return False
        inputs = [each for each in node.inputs if each and each not in graph.constants]
        if len(inputs) != 1:
            return False
        node = graph.producers.get(inputs[0])
    return node is not None


def _clips_from_zero(graph: Graph, node: Node) -> bool:
    lowest = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    return lowest is not None and float(lowest) == 0


def _keeps_batch(graph: Graph, node: Node, inputs: tuple[int, ...]) -> bool:
    """Returns True if the first axis of all tensors counts the images."""
    shapes = [graph.shapes.get(name) for name in (*node.outputs[:1], *(node.inputs[index] for index in inputs))]
    if any(shape is None or not shape or shape[0] != 1 for shape in shapes):
        return False
    perm = node.attributes.get("perm")
    return not isinstance(perm, list) or perm[0] == 0


def _ranks_equal(graph: Graph, node: Node, inputs: tuple[int, ...]) -> bool:
    return all(len(graph.shapes[node.inputs[index]]) == len(graph.shapes[node.outputs[0]]) for index in inputs)
