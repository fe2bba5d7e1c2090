"""Finds the tensor that a node is a function of, place by place. `importing.activations` and the deconvnet's rules ask.

A pointwise operation computes each place of its output from the same place of its inputs, so a chain of them is one
function of one number, as an activation is.
"""

from collections.abc import Container, Iterable, Iterator

from zfserve_model.graph.graph import Node

ACTIVATIONS = (
    *("Relu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "Silu", "Swish", "HardSwish", "Gelu", "Elu", "Selu", "Celu"),
    *("LeakyRelu", "PRelu", "ThresholdedRelu", "Mish", "Softplus", "Softsign", "Erf"),
)
ARITHMETIC = (
    *("Add", "Sum", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Log", "Abs", "Neg", "Reciprocal", "Max", "Min", "Mean"),
    *("Where", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Sign", "Sin", "Cos"),
    *("BatchNormalization", "Identity", "Dropout", "Cast"),
)
_POINTWISE = frozenset(ACTIVATIONS + ARITHMETIC)


def pointwise_sources(
    node: Node, before: Iterable[Node], constants: Container[str]
) -> Iterator[tuple[str, list[Node]]]:
    """Yields each tensor that `node` is a function of, place by place, the nearest one first.

    Constants may take part. Shapes are not looked at: a constant may broadcast the result to a larger shape.

    Args:
        node: the last node of the function.
        before: the nodes that precede it in topological order, the last one first.
        constants: the names of the constants.

    Yields:
        The name of the tensor, and the nodes from it to `node`, the last one first.
    """
    unread = {name for name in node.inputs if name and name not in constants}
    inside = [node]
    if len(unread) == 1:
        yield next(iter(unread)), list(inside)
    for other in before:
        if unread.isdisjoint(other.outputs):
            continue
        if other.operation not in _POINTWISE or len(other.outputs) > 1:
            return
        unread.difference_update(other.outputs)
        unread.update(name for name in other.inputs if name and name not in constants)
        inside.append(other)
        if len(unread) == 1:
            yield next(iter(unread)), list(inside)
