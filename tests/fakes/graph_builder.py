"""Builds small graphs by hand, and runs a positive version of each operation while it builds."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional
from zfserve_model.graph.graph import Graph, Node

Compute = Callable[..., Tensor]


class GraphBuilder:
    """Collects the nodes of a graph, with the values of all tensors for one image.

    Weights are positive, activations pass everything, and pools take the mean. So a unit depends on each pixel that it
    can see: the pixel's gradient is positive. The fields of the graph are tested against these gradients.
    """

    def __init__(self, height: int, width: int, channels: int = 3) -> None:
        self.image = torch.ones(1, channels, height, width, dtype=torch.float64, requires_grad=True)
        self.values: dict[str, Tensor] = {"images": self.image}
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}

    def add(self, operation: str, inputs: list[str], value: Tensor, name: str = "", **attributes: object) -> str:
        """Adds a node whose only output has `value`. Returns the output's name."""
        (output,) = self.add_many(operation, inputs, [value], name, **attributes)
        return output

    def add_many(
        self, operation: str, inputs: list[str], values: list[Tensor], name: str = "", **attributes: object
    ) -> tuple[str, ...]:
        outputs = tuple(f"t{len(self.nodes)}_{place}" for place in range(len(values)))
        self.nodes.append(Node(operation, tuple(inputs), outputs, attributes, name))
        self.values.update(zip(outputs, values, strict=True))
        return outputs

    def constant(self, value: Tensor) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def conv(  # the arguments of a convolution
        self,
        source: str,
        channels: int,
        kernel: tuple[int, int] = (3, 3),
        strides: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilations: tuple[int, int] = (1, 1),
        group: int = 1,
        name: str = "",
    ) -> str:
        """Adds a convolution. `pads` are those at the top, left, bottom and right, as in ONNX."""
        x = self.values[source]
        weight = torch.full((channels, x.shape[1] // group, *kernel), 1.0 / x.shape[1], dtype=torch.float64)
        top, left, bottom, right = pads
        padded = functional.pad(x, (left, right, top, bottom))
        value = functional.conv2d(padded, weight, None, strides, 0, dilations, group)
        attributes = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
        return self.add(
            "Conv",
            [source, self.constant(weight)],
            value,
            name,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()},
        )

    def pool(
        self, source: str, kernel: int = 3, stride: int = 2, pad: int = 0, *, ceil: bool = True, name: str = ""
    ) -> str:
        value = functional.avg_pool2d(self.values[source], kernel, stride, pad, ceil, count_include_pad=False)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": int(ceil)}
        return self.add("MaxPool", [source], value, name, **attributes)

    def relu(self, source: str, name: str = "") -> str:
        return self.add("Relu", [source], self.values[source].clone(), name)

    def join(self, operation: str, sources: list[str], name: str = "") -> str:
        """Adds an Add, a Mul or a Concat of channels."""
        values = [self.values[source] for source in sources]
        match operation:
            case "Add":
                return self.add("Add", sources, values[0] + values[1], name)
            case "Mul":
                return self.add("Mul", sources, values[0] * values[1], name)
            case _:
                return self.add("Concat", sources, torch.cat(values, 1), name, axis=1)

    def gate(self, source: str, name: str = "") -> str:
        """Adds a squeeze-and-excitation gate: the mean of each map, a 1x1 convolution, a sigmoid, and a product."""
        mean = self.add("GlobalAveragePool", [source], self.values[source].mean((2, 3), keepdim=True))
        scale = self.conv(mean, self.values[source].shape[1], (1, 1))
        return self.join("Mul", [source, self.add("Sigmoid", [scale], self.values[scale].sigmoid())], name)

    def graph(self) -> Graph:
        """Returns the graph with a linear head on the last tensor."""
        last = next(reversed(self.values))
        mean = self.values[last].mean((2, 3))
        pooled = self.add("ReduceMean", [last], mean, axes=[2, 3], keepdims=0)
        weight = torch.ones(2, mean.shape[1], dtype=torch.float64)
        logits = self.add("Gemm", [pooled, self.constant(weight)], mean @ weight.T, "fc", transB=1)
        probabilities = self.add("Softmax", [logits], self.values[logits].softmax(1), axis=1)
        shapes = {name: tuple(value.shape) for name, value in self.values.items()}
        return Graph(tuple(self.nodes), self.constants, "images", probabilities, logits, pooled, shapes)

    def support(self, tensor: str, rows: range, columns: range, maps: range | None = None) -> tuple[range, range]:
        """Returns the rows and columns of the image whose pixels change the units, by automatic differentiation."""
        maps = maps if maps is not None else range(self.values[tensor].shape[1])
        units = self.values[tensor][0, maps.start : maps.stop, rows.start : rows.stop, columns.start : columns.stop]
        (gradient,) = torch.autograd.grad(units.sum(), self.image, retain_graph=True)
        seen = gradient[0].abs().sum(0) > 0
        return _hull(seen.any(1)), _hull(seen.any(0))


def _hull(seen: Tensor) -> range:
    places = seen.nonzero().flatten().tolist()
    return range(places[0], places[-1] + 1) if places else range(0)


def with_names(graph: Graph, names: list[str]) -> Graph:
    """Returns the graph with other names for its first nodes."""
    renamed = [replace(node, name=name) for node, name in zip(graph.nodes, names, strict=False)]
    return replace(graph, nodes=(*renamed, *graph.nodes[len(renamed) :]))
