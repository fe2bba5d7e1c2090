"""Recognises activations that an exporter or a user has written as arithmetic, by their values.

`patterns` calls it. GELU alone has many forms: its cube is a Pow or two products, its factor 1/2 comes first or
last, and its argument may be factored out. All have the same values, so the function is computed and compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zfserve_model.graph.graph import Node
from zfserve_model.graph.operations import OPERATIONS
from zfserve_model.graph.pointwise import pointwise_sources
from zfserve_model.graph.wiring import Wiring

LONGEST = 16
"""The most nodes of one activation. GELU has nine where torch's older exporter wrote it."""
TOLERANCE = 1e-4
"""The largest difference at a point x, in units of max(1, |x|). The two kinds of GELU differ by 5e-4."""

_POINTS = torch.linspace(-8, 8, 129, dtype=torch.float64)
_KNOWN: Sequence[tuple[str, Mapping[str, object]]] = (
    ("Silu", {}),
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
    ("HardSwish", {}),
    ("Mish", {}),
    ("Softplus", {}),
)


def activation(wiring: Wiring, node: Node) -> Node | None:
    """Recognises a chain of pointwise nodes that ends in `node` and has the values of a known activation."""
    before = reversed(wiring.makers.values())
    for source, nodes in pointwise_sources(node, before, wiring.constants):
        if len(nodes) > LONGEST or not all(each.supported for each in nodes):
            return None
        if len(nodes) == 1 or wiring.shapes.get(source) != wiring.shapes.get(node.outputs[0]):
            continue
        values = _values(wiring, source, nodes)
        if values is None:
            return None
        found = _closest(values)
        if found is not None:
            operation, attributes = found
            return replace(node, operation=operation, inputs=(source,), attributes=attributes)
    return None


def _values(wiring: Wiring, source: str, nodes: Sequence[Node]) -> Tensor | None:
    """Returns the function at all points. None if a constant holds several numbers, as a scale of channels does."""
    values = {source: _POINTS}
    for node in reversed(nodes):
        inputs: list[Tensor | None] = []
        for name in node.inputs:
            constant = wiring.constants.get(name)
            if constant is not None and constant.numel() != 1:
                return None
            inputs.append(values.get(name) if constant is None else constant.reshape(()))
        computed = OPERATIONS[node.operation].compute(node.attributes, *inputs)
        values[node.outputs[0]] = computed if isinstance(computed, Tensor) else computed[0]
    return values[nodes[0].outputs[0]].double()


def _closest(values: Tensor) -> tuple[str, Mapping[str, object]] | None:
    """Returns the operation and the attributes of the activation with these values at the points. None if none has."""
    candidates = list(_KNOWN)
    at_one = values[_POINTS == 1]
    if 0.5 < float(at_one) < 1:  # x * sigmoid(alpha * x)
        candidates.append(("Swish", {"alpha": float(torch.logit(at_one))}))
    scale = _POINTS.abs().clamp(min=1)
    for operation, attributes in candidates:
        exact = OPERATIONS[operation].compute(attributes, _POINTS)
        assert isinstance(exact, Tensor)
        if bool(((values - exact).abs() <= TOLERANCE * scale).all()):
            return operation, attributes
    return None
