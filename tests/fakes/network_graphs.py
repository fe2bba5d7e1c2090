"""Builds small graphs node by node, and the graphs of zfserve's own networks, without an ONNX file."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from zfserve_model.graph.graph import Graph, Node
from zfserve_model.graph.operations import OPERATIONS
from zfserve_model.networks import Network


class RunningGraphBuilder:
    """Adds nodes one by one and runs each, so that the shapes of all tensors are known.

    Args:
        channels, height, width: the shape of the input, whose name is "images".
    """

    def __init__(self, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        self._nodes: list[Node] = []
        self._constants: dict[str, Tensor] = {}
        self.values = {"images": torch.zeros(1, channels, height, width, dtype=dtype)}

    def constant(self, value: Tensor) -> str:
        """Adds a constant. Returns its name."""
        name = f"constant{len(self._constants)}"
        self._constants[name] = value.detach()
        return name

    def add(
        self, operation: str, *inputs: str | Tensor, outputs: Sequence[str] = (), name: str = "", **attributes: object
    ) -> str:
        """Adds a node. A tensor among the inputs becomes a constant. Returns the name of the first output."""
        number = len(self._nodes)
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        outputs = tuple(outputs) or (f"{operation.lower()}{number}",)
        node = Node(operation, tuple(names), outputs, attributes, name or outputs[0])
        arguments = [(self._constants | self.values)[each] if each else None for each in names]
        with torch.no_grad():
            computed = OPERATIONS[operation].compute(attributes, *arguments)
        self.values.update(zip(outputs, computed if isinstance(computed, tuple) else (computed,), strict=True))
        self._nodes.append(node)
        return outputs[0]

    def build(self, logits: str | None = None) -> Graph:
        """Returns the graph. Without `logits`, the last node's output is flattened and serves as the scores."""
        logits = logits or self.add("Flatten", self._nodes[-1].outputs[0], axis=1)
        probabilities = self.add("Softmax", logits, axis=1)
        shapes = {name: tuple(value.shape) for name, value in self.values.items()}
        return Graph(tuple(self._nodes), dict(self._constants), "images", probabilities, logits, None, shapes)


def network_graph(network: Network, size: int = 224) -> Graph:
    """Returns the graph of a network without batch norm.

    Its tensors have the names of the layers. Its nodes have the names that torch's older exporter gives them.
    """
    weight = next(network.parameters())
    builder, tensor = RunningGraphBuilder(3, size, size, weight.dtype), "images"
    for part in ("trunk", "head"):
        for name, module in network.get_submodule(part).named_children():
            tensor = _add_module(builder, f"/{part}/{name}/", name, module, tensor)
    return builder.build(tensor)


def _add_module(builder: RunningGraphBuilder, path: str, name: str, module: nn.Module, tensor: str) -> str:
    match module:
        case nn.Conv2d():
            assert isinstance(module.padding, tuple)
            assert module.bias is not None
            pads, strides = list(module.padding) * 2, list(module.stride)
            return builder.add(
                "Conv",
                tensor,
                module.weight,
                module.bias,
                outputs=[name],
                name=path + "Conv",
                pads=pads,
                strides=strides,
            )
        case nn.ReLU():
            return builder.add("Relu", tensor, outputs=[name], name=path + "Relu")
        case nn.MaxPool2d():
            kernel, stride = [module.kernel_size] * 2, [module.stride] * 2
            return builder.add(
                "MaxPool",
                tensor,
                outputs=[name],
                name=path + "MaxPool",
                kernel_shape=kernel,
                strides=stride,
                ceil_mode=int(module.ceil_mode),
            )
        case nn.LocalResponseNorm():
            return builder.add(
                "LRN",
                tensor,
                outputs=[name],
                name=path + "LRN",
                size=module.size,
                alpha=module.alpha,
                beta=module.beta,
                bias=module.k,
            )
        case nn.Linear():
            return builder.add("Gemm", tensor, module.weight, module.bias, outputs=[name], name=path + "Gemm", transB=1)
        case nn.Flatten():
            return builder.add("Flatten", tensor, outputs=[name], name=path + "Flatten", axis=1)
        case nn.Dropout():
            return tensor
        case _:
            raise ValueError(f"a network has no {type(module).__name__}")
