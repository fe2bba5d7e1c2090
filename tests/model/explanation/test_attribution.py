"""Attributions agree with captum and with their definition, and have the properties of integrated gradients."""

from functools import cache

import pytest
import torch
from captum.attr import IntegratedGradients
from fakes.network_graphs import network_graph
from torch import Tensor, nn
from zfserve_model.explanation.attribution import STEPS, ClassAttribution, attribute
from zfserve_model.explanation.deconvnet import OutOfRange, Position, Trace, UnitOfEach, UnknownLayer, project, trace
from zfserve_model.graph.graph import Graph, Node
from zfserve_model.networks import ARCHITECTURES, INPUT_SIZE, Network, NetworkSpec, build_network

LAYERS = ("relu2", "conv5", "pool5")


@cache
def traced(architecture: str, contrast_norm: bool = False, biases: bool = True) -> tuple[Network, Tensor, Trace]:
    """Returns a random network, an image and its trace. Tests share them and only read them."""
    generator = torch.Generator().manual_seed(3)
    spec = NetworkSpec(architecture, classes=4, hidden_width=16, contrast_norm=contrast_norm)
    network = build_network(spec, generator).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.1 if biases else 0))
    image = torch.randn(3, INPUT_SIZE, INPUT_SIZE, generator=generator)
    names = [name for name, _ in network.trunk.named_children()]
    return network, image, trace(network_graph(network), image, names)


def network_above(network: Network, layer: str) -> nn.Sequential:
    names = [name for name, _ in network.trunk.named_children()]
    return nn.Sequential(*list(network.trunk.children())[names.index(layer) + 1 :], network.head)


@pytest.mark.parametrize(
    ("architecture", "contrast_norm"), [*((name, False) for name in ARCHITECTURES), ("zfnet-fig3", True)]
)
def test_equals_captum(architecture: str, contrast_norm: bool) -> None:
    network, _, forward = traced(architecture, contrast_norm)
    for layer in LAYERS:
        reference = IntegratedGradients(network_above(network, layer))
        start = forward.activations[layer].clone()[None]
        expected = reference.attribute(
            start, torch.zeros_like(start), target=2, n_steps=STEPS, method="riemann_middle", internal_batch_size=4
        )[0]
        found = attribute(forward, layer, 2).units
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), layer


@pytest.mark.parametrize("layer", ["pool2", "conv4", "conv5", "pool5"])
def test_all_units_together_add_what_the_score_gains_from_silence(layer: str) -> None:
    network, image, forward = traced("zfnet-fig3")
    with torch.inference_mode():
        scores = network(image[None])[0]
        silent = network_above(network, layer)(torch.zeros_like(forward.activations[layer])[None])[0]
    gains = (scores - silent).tolist()
    for index, gain in enumerate(gains):
        attribution = attribute(forward, layer, index)
        assert attribution.units.sum().item() == pytest.approx(gain, abs=0.05 * max(map(abs, gains)))
        torch.testing.assert_close(attribution.maps.sum(), attribution.units.sum(), rtol=1e-3, atol=1e-5)


def test_without_biases_every_step_of_the_way_has_one_gradient() -> None:
    """A network without biases is homogeneous, so a unit adds its activation times its gradient."""
    network, _, forward = traced("zfnet-fig3", biases=False)
    start = forward.activations["conv5"].clone()[None].requires_grad_()
    scores = network_above(network, "conv5")(start)[0]
    (gradient,) = torch.autograd.grad(scores[1], start)
    found = attribute(forward, "conv5", 1).units
    torch.testing.assert_close(found, (gradient * start)[0].detach(), rtol=1e-4, atol=1e-7)
    assert found.sum().item() == pytest.approx(scores[1].item(), rel=1e-3)


def test_a_network_that_takes_one_image_at_a_time_is_explained() -> None:
    """A vision transformer that was exported with a batch of one adds its class token to one image only."""
    constants = {"kernels": torch.randn(2, 3, 3, 3), "token": torch.full((1, 2, 6, 1), 0.5), "rows": torch.randn(4, 2)}
    nodes = (
        Node("Conv", ("images", "kernels"), ("maps",)),
        Node("Concat", ("maps", "token"), ("joined",), {"axis": 3}),
        Node("Relu", ("joined",), ("rectified",)),
        Node("GlobalAveragePool", ("rectified",), ("means",)),
        Node("Flatten", ("means",), ("features",)),
        Node("Gemm", ("features", "rows"), ("logits",), {"transB": 1}),
        Node("Softmax", ("logits",), ("probabilities",), {"axis": 1}),
    )
    shapes: dict[str, tuple[int, ...]] = {
        "images": (1, 3, 8, 8),
        "maps": (1, 2, 6, 6),
        "joined": (1, 2, 6, 7),
        "rectified": (1, 2, 6, 7),
    }
    shapes |= {"means": (1, 2, 1, 1), "features": (1, 2), "logits": (1, 4), "probabilities": (1, 4)}
    graph = Graph(nodes, constants, "images", "probabilities", "logits", "features", shapes, fixed_batch=1)
    found = attribute(trace(graph, torch.randn(3, 8, 8), ["maps"]), "maps", 1)
    assert found.heatmap.shape == (6, 6)
    # Between zero and the activations, each ReLU stays on one side, so the integral has no gap.
    assert found.heatmap.sum().item() == pytest.approx(found.score - found.baseline_score, abs=1e-5)


def test_the_most_probable_class_is_the_default() -> None:
    network, image, forward = traced("zfnet-fig3")
    with torch.inference_mode():
        probabilities = network(image[None]).softmax(1)[0]
    attribution = attribute(forward, "conv5")
    assert attribution.index == int(probabilities.argmax())
    assert attribution.probability == pytest.approx(float(probabilities.max()), rel=1e-5)
    assert not attribution.units.requires_grad
    torch.testing.assert_close(attribution.units, attribute(forward, "conv5", attribution.index).units)


def test_leading_maps_and_units_by_hand() -> None:
    units = torch.tensor([[[0.0, 3], [-2, 0]], [[1, 0], [0, 1]], [[0, 0], [-1, 0]], [[0.5, 0.5], [0.5, 0.5]]])
    attribution = ClassAttribution("conv4", 0, 1.0, units)
    assert attribution.maps.tolist() == [1, 2, -1, 2]
    assert attribution.leading_maps(4) == [1, 3, 0, 2]
    assert attribution.leading_units([0, 1, 2]) == UnitOfEach({0: Position(0, 1), 1: Position(0, 0), 2: Position(0, 0)})
    for count in (0, 5):
        with pytest.raises(OutOfRange):
            attribution.leading_maps(count)


def test_each_map_is_projected_from_its_own_unit() -> None:
    _, _, forward = traced("zfnet-fig3")
    places = {7: Position(1, 2), 3: Position(12, 0), 11: Position(4, 4)}
    together = list(project(forward, "conv4", list(places), UnitOfEach(places)))
    for (index, place), found in zip(places.items(), together, strict=True):
        (alone,) = project(forward, "conv4", [index], place)
        assert (found.map, found.unit, found.activation, found.window) == (index, place, alone.activation, alone.window)
        torch.testing.assert_close(found.pixels, alone.pixels)


def test_what_there_is_not() -> None:
    _, _, forward = traced("zfnet-fig3")
    with pytest.raises(UnknownLayer, match="no layer 'conv9'"):
        attribute(forward, "conv9")
    for index in (-1, 4):
        with pytest.raises(OutOfRange, match="classes 0 to 3"):
            attribute(forward, "conv5", index)
