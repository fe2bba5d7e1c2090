"""One module has one projection, whatever exporter and operator set wrote its file.

Each file is held against automatic differentiation of the module itself, with the rule of the deconvnet put in.
"""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fakes.autograd_projection import PassedOver, Rectified
from model.conftest import export_module
from torch import Tensor, nn
from zfserve_model.explanation.deconvnet import WholeMap, project, trace
from zfserve_model.explanation.rules import projection_rule
from zfserve_model.graph.execution import move_graph
from zfserve_model.graph.graph import Graph
from zfserve_model.importing.importer import import_graph

SIZE = 12
CHANNELS = 6
ACTIVATION_FORMS = [("old", 11), ("old", 14), ("old", 18), ("old", 20), ("new", 18), ("new", 20)]
NORM_FORMS = [("old", 16), ("old", 17), ("old", 18), ("new", 18), ("new", 21)]
SLOPE = math.sqrt(2 / math.pi)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu, x * x * x": lambda x: 0.5 * x * (1 + torch.tanh(SLOPE * (x + 0.044715 * (x * x * x)))),
    "gelu, factored": lambda x: x * (1 + torch.tanh(SLOPE * x * (1 + 0.044715 * x * x))) * 0.5,
    "gelu, two terms": lambda x: 0.5 * x + 0.5 * x * torch.erf(x / math.sqrt(2)),
    "x / (1 + exp(-x))": lambda x: x / (1 + torch.exp(-x)),
    "x * tanh(x)": lambda x: x * torch.tanh(x),
    "sigmoid(x) * tanh(x)": lambda x: torch.sigmoid(x) * torch.tanh(x),
    "x * x": lambda x: x * x,
}
NAMED = {
    "silu": "Silu",
    "mish": "Mish",
    **dict.fromkeys((name for name in ACTIVATIONS if name.startswith("gelu")), "Gelu"),
    "x / (1 + exp(-x))": "Silu",
}
"""The operations that the importer recognises. The others stay products, which the rules take for activations."""


class Activated(nn.Module):
    """Has every activation, of x and of 2 x in turn, each behind a convolution. They stand in one network.

    `deconvnet` makes the backward pass that of the deconvnet.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.deconvnet = False
        widths = [3, *[CHANNELS] * len(ACTIVATIONS)]
        self.below = nn.ModuleList(nn.Conv2d(before, CHANNELS, 3, padding=1) for before in widths[:-1])
        self.above = nn.Conv2d(CHANNELS, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for number, (below, function) in enumerate(zip(self.below, ACTIVATIONS.values(), strict=True)):
            x = 2 * below(x) if number % 2 else below(x)
            after = function(x)
            x = Rectified.apply(x, after.detach()) if self.deconvnet else after  # type: ignore[no-untyped-call]
        return self.above(x)  # type: ignore[no-any-return]


class Normed(nn.Module):
    """Has a layer norm over the channels, a group norm and an instance norm, all with scales, and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.second, self.third = (nn.Conv2d(each, CHANNELS, 3, padding=1) for each in (3, 6, 6))
        self.above, self.deconvnet = nn.Conv2d(CHANNELS, 4, 3), False
        self.layer, self.group = nn.LayerNorm(CHANNELS), nn.GroupNorm(3, CHANNELS)
        self.instance = nn.InstanceNorm2d(CHANNELS, affine=True)
        for norm in (self.layer, self.group, self.instance):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(0, 2, 3, 1)
        x = self._pass(self.layer, x, self.layer.weight).permute(0, 3, 1, 2)
        x = self._pass(self.group, self.second(x), self.group.weight[:, None, None])
        x = self._pass(self.instance, self.third(x), self.instance.weight[:, None, None])
        return self.above(x)  # type: ignore[no-any-return]

    def _pass(self, norm: nn.Module, x: Tensor, scale: Tensor) -> Tensor:
        if self.deconvnet:
            return PassedOver.apply(x * scale, norm(x).detach())  # type: ignore[no-any-return, no-untyped-call]
        return norm(x)  # type: ignore[no-any-return]


def imported(module: Activated | Normed, exporter: str, opset: int) -> Graph:
    graph = import_graph(export_module(nn.Sequential(module, nn.Flatten()), exporter, SIZE, opset=opset))
    return move_graph(graph, "cpu", torch.float64)


def top(graph: Graph) -> str:
    """Returns the output of the last convolution."""
    return next(node for node in reversed(graph.nodes) if node.operation == "Conv").outputs[0]


def assert_projects_like(graph: Graph, module: Activated | Normed) -> None:
    """Compares all maps of the last layer, whole, in float64."""
    image = torch.randn(3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    reference = module.double()
    reference.deconvnet = True
    pixels = image[None].requires_grad_()
    above = reference(pixels)[0]
    traced = trace(graph, image.detach(), [top(graph)])
    torch.testing.assert_close(traced.activations[top(graph)], above.detach(), rtol=1e-4, atol=1e-5)
    for found in project(traced, top(graph), range(4), WholeMap()):
        (expected,) = torch.autograd.grad((0.5 * above[found.map] ** 2).sum(), pixels, retain_graph=True)
        assert expected.abs().max() > 0
        assert (found.pixels - expected[0]).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("exporter", "opset"), ACTIVATION_FORMS)
def test_activations_are_rectified_in_every_form(exporter: str, opset: int) -> None:
    module = Activated()
    graph = imported(module, exporter, opset)
    operations = [node.operation for node in graph.nodes]
    assert {name: operations.count(name) for name in NAMED.values()} == dict(Counter(NAMED.values()))
    rule = projection_rule(graph, top(graph))
    assert (rule.rule, len(rule.nodes), rule.obstacle) == ("extended", len(ACTIVATIONS), "")
    assert set(rule.nodes) <= {node.name for node in graph.nodes}
    assert_projects_like(graph, module)


@pytest.mark.parametrize(("exporter", "opset"), NORM_FORMS)
def test_a_norm_is_passed_over_and_its_scale_is_not(exporter: str, opset: int) -> None:
    module = Normed()
    graph = imported(module, exporter, opset)
    assert projection_rule(graph, top(graph)).rule == "paper"
    assert_projects_like(graph, module)
