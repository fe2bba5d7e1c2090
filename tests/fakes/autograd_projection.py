"""Projects through a graph by automatic differentiation: a reference for the deconvnet that shares none of its code.

The graph runs forward with torch's own operations. Only the activations, the gates and the norms have a backward pass
of their own. So the reference knows no windows, no switches and no transposes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from zfserve_model.graph.execution import run_node
from zfserve_model.graph.graph import Graph, Node

RECTIFIERS = (
    "Relu",
    "Clip",
    "Silu",
    "Swish",
    "HardSwish",
    "Gelu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Celu",
    "Mish",
    "Softplus",
    "ThresholdedRelu",
)
NORMS = {"LRN", "LayerNormalization", "GroupNormalization", "InstanceNormalization"}
GATES = {"Sigmoid", "HardSigmoid", "Softmax", "Tanh"}


class Rectified(torch.autograd.Function):
    """Passes values forward, and rectifies the gradient on the way back."""

    @staticmethod
    def forward(context: Any, before: Tensor, after: Tensor) -> Tensor:
        return after.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].clamp(min=0), None


class PassedOver(torch.autograd.Function):
    """Passes values forward, and the gradient back as it is."""

    @staticmethod
    def forward(context: Any, before: Tensor, after: Tensor) -> Tensor:
        return after.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def reference_projection(
    graph: Graph,
    image: Tensor,
    tensor: str,
    index: int,
    place: tuple[int, int] | None,
    gates: frozenset[str] = frozenset(),
) -> Tensor:
    """Returns the projection of one unit, or of a whole map, float64 (3, height, width).

    Args:
        graph: the network, with constants in float64.
        image: float64 (3, height, width).
        tensor: the layer.
        index: the feature map.
        place: the row and the column of the unit. None stands for the whole map.
        gates: tensors that are constants on the way back. The outputs of sigmoids and the like always are.
    """
    values: dict[str, Tensor] = {graph.input: image[None].clone().requires_grad_()}
    start = values[graph.input]
    for node in graph.nodes:
        if all(name in graph.constants or name in values for name in node.inputs if name):
            values.update(_outputs(node, graph.constants, values, gates))
        if tensor in values:
            break
    units = values[tensor][0, index]
    chosen = units if place is None else units[place]
    (gradient,) = torch.autograd.grad((0.5 * chosen**2).sum(), start)
    return gradient[0]


def _outputs(
    node: Node, constants: Mapping[str, Tensor], values: Mapping[str, Tensor], gates: frozenset[str]
) -> dict[str, Tensor]:
    inputs = [(values[name] if name in values else constants[name]) if name else None for name in node.inputs]
    outputs = run_node(node, inputs)
    first = inputs[0]
    if node.operation in RECTIFIERS:
        outputs = (Rectified.apply(first, outputs[0].detach()),)  # type: ignore[no-untyped-call]
    elif node.operation in NORMS:
        assert first is not None
        scaled = first if node.operation == "LRN" else first * _scale_of_norm(node, inputs)
        outputs = (PassedOver.apply(scaled, outputs[0].detach()),)  # type: ignore[no-untyped-call]
    elif node.operation in GATES:
        outputs = tuple(output.detach() for output in outputs)
    return {
        name: output.detach() if name in gates else output for name, output in zip(node.outputs, outputs, strict=False)
    }


def _scale_of_norm(node: Node, inputs: Sequence[Tensor | None]) -> Tensor:
    """Returns the scale in a shape that multiplies the input: the last axes of a layer norm, else the channels."""
    first, scale = inputs[:2]
    assert first is not None
    assert scale is not None
    return scale if node.operation == "LayerNormalization" else scale.reshape(1, -1, *(1,) * (first.dim() - 2))
