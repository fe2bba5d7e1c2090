"""Answers questions about the neighbourhood of a node, for `patterns` and `norm_patterns`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from zfserve_model.graph.graph import Node


@dataclass
class Wiring:
    """Answers questions about the neighbourhood of a node.

    Attributes:
        constants: the constants by name.
        shapes: the shapes of the other tensors, for one image.
        makers: the node that computes each tensor.
        readers: the nodes that read each tensor.
        inserted: nodes that a recogniser needs before the one that it returns.
    """

    constants: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    makers: dict[str, Node]
    readers: dict[str, list[Node]]
    inserted: list[Node] = field(default_factory=list)

    def maker(self, name: str, *operations: str) -> Node | None:
        """Returns the node that computes a tensor, if it has one of these operations."""
        node = self.makers.get(name)
        return node if node is not None and node.operation in operations else None

    def number(self, name: str) -> float | None:
        """Returns the value of a constant of one element. None for all other tensors."""
        tensor = self.constants.get(name)
        return None if tensor is None or tensor.numel() != 1 else float(tensor.reshape(-1)[0])

    def limits(self, node: Node) -> tuple[float, float]:
        """Returns the lower and the upper limit of a Relu or a Clip."""
        if node.operation == "Relu":
            return 0.0, math.inf
        values = [self.number(name) if name else None for name in node.inputs[1:3]] + [None, None]
        return (-math.inf if values[0] is None else values[0]), (math.inf if values[1] is None else values[1])

    def scaled(self, name: str) -> tuple[float, str]:
        """Returns (a, x) if the tensor is a times x for a number a. Otherwise (1, name)."""
        factor = 1.0
        while (node := self.maker(name, "Mul", "Div")) is not None:
            numbers = [self.number(each) for each in node.inputs]
            if numbers[1] is not None and node.operation == "Div" and numbers[1] != 0:
                factor, name = factor / numbers[1], node.inputs[0]
            elif numbers[1] is not None and node.operation == "Mul":
                factor, name = factor * numbers[1], node.inputs[0]
            elif numbers[0] is not None and node.operation == "Mul":
                factor, name = factor * numbers[0], node.inputs[1]
            else:
                break
        return factor, name

    def shifted(self, name: str) -> tuple[float, str]:
        """Returns (b, x) if the tensor is x + b for a number b. Otherwise (0, name)."""
        node = self.maker(name, "Add", "Sub")
        if node is None:
            return 0.0, name
        numbers = [self.number(each) for each in node.inputs]
        if numbers[1] is not None:
            return (numbers[1] if node.operation == "Add" else -numbers[1]), node.inputs[0]
        if numbers[0] is not None and node.operation == "Add":
            return numbers[0], node.inputs[1]
        return 0.0, name

    def is_gate(self, name: str) -> bool:
        """Returns True if all readers multiply the tensor with another that depends on the photo."""
        readers = self.readers.get(name, [])
        return bool(readers) and all(
            reader.operation == "Mul" and all(each not in self.constants for each in reader.inputs)
            for reader in readers
        )

    def constant(self, name: str, value: Tensor) -> str:
        """Adds a constant, and returns its name, which is `name` if that is free."""
        while name in self.constants or name in self.makers:
            name += "'"
        self.constants[name] = value
        return name


Recogniser = Callable[[Wiring, Node], Node | None]
"""Returns the node that computes the same as a pattern which ends in the given node. None if there is no pattern."""


def near(value: float, exact: float) -> bool:
    """Returns True for a constant of a pattern, such as 1/6, also if it was rounded to float16."""
    return math.isclose(value, exact, rel_tol=1e-4)
