"""Builds the networks whose projections are measured: zfnet and ResNet-50, with random weights.

The time of a projection does not depend on the weights. Each network is a PyTorch module, for captum, and the same
network as a graph, for zfserve.
"""

import io
import warnings
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from zfserve_model.graph.graph import Graph
from zfserve_model.importing.importer import import_graph
from zfserve_model.layers.layer_table import layer_table
from zfserve_model.networks import INPUT_SIZE, NetworkSpec, build_network

BLOCKS = (3, 4, 6, 3)
"""The number of bottleneck blocks in each stage of ResNet-50 (He et al., CVPR 2016, table 1)."""


@dataclass(frozen=True)
class ProjectedNetwork:
    """Holds one network and the layer to project.

    Attributes:
        name: the name in the report.
        module: the network in PyTorch.
        layer: the module whose output is projected.
        graph: the same network as a graph.
        tensor: the layer's output in the graph.
    """

    name: str
    module: nn.Module
    layer: nn.Module
    graph: Graph
    tensor: str


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *_convolution(inputs, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, outputs, 1),
        )
        keeps_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if keeps_shape else nn.Sequential(*_convolution(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return activated


def resnet50() -> ProjectedNetwork:
    """Returns ResNet-50 with the output of its last stage."""
    layers: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate(BLOCKS):
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(Bottleneck(inputs, 64 << stage, stride))
            inputs = 256 << stage
    last = layers[-1]
    assert isinstance(last, Bottleneck)
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))
    return as_projected("ResNet-50, last stage", module, last.relu, -1)


def zfnet() -> ProjectedNetwork:
    """Returns zfnet, with the hidden width of the weights that come with zfserve, and its layer conv5."""
    network = build_network(NetworkSpec("zfnet", hidden_width=256), torch.Generator().manual_seed(1))
    names = [name for name, _ in network.trunk.named_children()]
    position = names.index("conv5")
    return as_projected("zfnet, conv5", network, network.trunk[position], position)


def as_projected(name: str, module: nn.Module, layer: nn.Module, row: int, size: int = INPUT_SIZE) -> ProjectedNetwork:
    """Returns the module with its graph.

    Args:
        row: the position of the layer in the layer table of the graph.
        size: the height and the width of the input, in pixels.
    """
    module = module.eval().requires_grad_(False)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its older exporter, which is the faster one, will go
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, size, size),),
            file,  # type: ignore[arg-type]  # it takes a file object too
            dynamo=False,
            input_names=["images"],
            dynamic_axes={"images": {0: "n"}},
        )
    graph = import_graph(onnx.load_from_string(file.getvalue()))
    return ProjectedNetwork(name, module, layer, graph, layer_table(graph)[row].tensor)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
