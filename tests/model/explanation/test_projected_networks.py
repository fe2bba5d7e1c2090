"""Projections and attributions of nine small networks equal two references: automatic differentiation, and captum.

Each network goes the whole way, from its module through a file to the graph. All numbers are float64, so that a
difference is an error and no rounding.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from captum.attr import IntegratedGradients, LayerGradCam, NeuronDeconvolution
from fakes.autograd_projection import reference_projection
from model.conftest import export_module
from model.small_networks import SIZE, SMALL_NETWORKS, for_captum, head, make_small_network
from torch import Tensor, nn
from zfserve_model.explanation.attribution import STEPS, attribute, grad_cam
from zfserve_model.explanation.deconvnet import Projection, StrongestUnit, Trace, WholeMap, project, trace
from zfserve_model.explanation.rules import projection_rule
from zfserve_model.graph.execution import move_graph, run
from zfserve_model.importing.importer import import_graph
from zfserve_model.layers.layer_table import layer_table

TOLERANCE = 1e-5
"""The largest difference relative to the reference's largest value."""

RIGHT_IN_CAPTUM = ("residual", "dense", "gate", "shuffle", "inception")
"""Networks whose activations are ReLUs, and whose norms are batch norms. captum knows no rule for others."""


@dataclass(frozen=True)
class Traced:
    """Holds a network, its graph's trace, and the tensor of each of its parts that makes maps.

    Attributes:
        module: the network, float64.
        trace: the forward pass through its graph, float64, of all tensors of maps.
        parts: the tensor of each part of the module, by the part's index.
    """

    module: nn.Sequential
    trace: Trace
    parts: dict[int, str]

    @property
    def image(self) -> Tensor:
        return self.trace.image


def traced(module: nn.Sequential) -> Traced:
    graph = move_graph(import_graph(export_module(module, "old", SIZE)), "cpu", torch.float64)
    module = module.double()
    image = torch.randn(3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    maps = [name for node in graph.nodes for name in node.outputs if len(graph.shapes[name]) == 4]
    with torch.no_grad():
        values = run(graph, {graph.input: image[None]}, maps)
        outputs = [module[: place + 1](image[None]) for place in range(len(module))]
    parts = {}
    for place, output in enumerate(outputs):
        if output.dim() == 4 and output.shape[2] > 1:
            alike = [name for name in maps if values[name].shape == output.shape]
            # The constants are float32 in the file, so a folded batch norm differs by that much.
            parts[place] = next(name for name in alike if torch.allclose(values[name], output, rtol=1e-5, atol=1e-6))
    return Traced(module, trace(graph, image, maps), parts)


@cache
def small(name: str) -> Traced:
    """Returns a network and its trace. Tests share them and only read them."""
    return traced(make_small_network(name))


def on_whole_image(projection: Projection) -> Tensor:
    window = projection.window
    image = projection.pixels.new_zeros(3, SIZE, SIZE)
    image[:, window.top : window.bottom, window.left : window.right] = projection.pixels
    return image


def difference(actual: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, relative to the largest value of what is expected."""
    largest = float(expected.abs().max())
    assert largest > 0
    return float((actual - expected).abs().max()) / largest


def by_autograd(forward: Trace, tensor: str, found: Projection) -> Tensor:
    place = None if found.unit is None else (found.unit.row, found.unit.column)
    return reference_projection(forward.graph, forward.image, tensor, found.map, place)


def by_captum(module: nn.Sequential, layer: nn.Module, image: Tensor, found: Projection) -> Tensor:
    index, unit_of_map = found.map, found.unit

    def selected(output: Tensor) -> Tensor:
        # captum starts from the gradient of half the square, which is the activation.
        if unit_of_map is None:
            return (0.5 * output[:, index] ** 2).flatten(1).sum(1)
        return 0.5 * output[:, index, unit_of_map.row, unit_of_map.column] ** 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "hooks will be removed after the attribution"
        attribution: Tensor = NeuronDeconvolution(module, layer).attribute(image[None], selected)
    return attribution[0].detach()


def live_maps(forward: Trace, tensor: str) -> list[int]:
    """Returns the first and the last map with a positive activation."""
    live = [index for index, values in enumerate(forward.activations[tensor]) if values.max() > 0]
    return [live[0], live[-1]]


def three_depths(network: Traced) -> list[str]:
    """Returns the tensors of three layers of the layer table: near the image, in the middle, and the last."""
    rows = [row for row in layer_table(network.trace.graph) if row.height > 1]
    assert len(rows) >= 3
    return [rows[place].tensor for place in (0, len(rows) // 2, -1)]


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_equals_automatic_differentiation_at_three_depths(name: str) -> None:
    network = small(name)
    for tensor in three_depths(network):
        assert not projection_rule(network.trace.graph, tensor).obstacle
        maps = live_maps(network.trace, tensor)
        for rule in (StrongestUnit(), WholeMap()):
            for found in project(network.trace, tensor, maps, rule):
                expected = by_autograd(network.trace, tensor, found)
                assert difference(on_whole_image(found), expected) <= TOLERANCE, (tensor, rule)


@pytest.mark.parametrize("name", RIGHT_IN_CAPTUM)
def test_equals_captum_where_captum_is_right(name: str) -> None:
    network = small(name)
    module = for_captum(network.module)
    assert len(network.parts) >= 3
    for place, tensor in network.parts.items():
        for rule in (StrongestUnit(), WholeMap()):
            for found in project(network.trace, tensor, live_maps(network.trace, tensor), rule):
                expected = by_captum(module, module[place], network.image, found)
                assert difference(on_whole_image(found), expected) <= TOLERANCE, (tensor, rule)


class Activated(nn.Module):
    def __init__(self, channels: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.activation = nn.Conv2d(channels, 8, 3, padding=1), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.convolution(x))


@pytest.mark.parametrize("activation", [F.relu, nn.ReLU6()], ids=["F.relu", "nn.ReLU6"])
def test_captum_is_wrong_where_a_rectifier_is_no_relu_module(activation: Callable[[Tensor], Tensor]) -> None:
    """captum replaces the backward pass of `nn.ReLU` alone. For the others it returns the plain gradient in silence."""
    torch.manual_seed(9)
    network = traced(nn.Sequential(*(Activated(channels, activation) for channels in (3, 8, 8)), head(8)))
    tensor = network.parts[2]
    (found,) = project(network.trace, tensor, live_maps(network.trace, tensor)[:1], WholeMap())
    expected = by_autograd(network.trace, tensor, found)
    assert difference(on_whole_image(found), expected) <= TOLERANCE
    captum = by_captum(network.module, network.module[2], network.image, found)
    assert difference(captum, expected) > 0.1
    pixels = network.image[None].clone().requires_grad_()
    plain = torch.autograd.grad((0.5 * network.module[:3](pixels)[0, found.map] ** 2).sum(), pixels)[0][0]
    assert difference(captum, plain) <= TOLERANCE


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_grad_cam_equals_captum(name: str) -> None:
    network = small(name)
    for place, tensor in network.parts.items():
        for index in (0, 3):
            expected = LayerGradCam(network.module, network.module[place]).attribute(network.image[None], target=index)
            found = grad_cam(network.trace, tensor, index)
            assert difference(found.heatmap, expected[0, 0].detach()) <= TOLERANCE, (tensor, index)


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_attributions_equal_captum(name: str) -> None:
    network = small(name)
    for place, tensor in network.parts.items():
        start = network.trace.activations[tensor].clone()[None]
        expected = IntegratedGradients(network.module[place + 1 :]).attribute(
            start, torch.zeros_like(start), target=2, n_steps=STEPS, method="riemann_middle", internal_batch_size=8
        )
        assert difference(attribute(network.trace, tensor, 2).units, expected[0]) <= TOLERANCE, tensor
