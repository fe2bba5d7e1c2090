"""Projections of zfserve's own networks agree with captum and with their definition, and have the right properties.

`test_projected_operations.py` tests single operations.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from captum.attr import NeuronDeconvolution
from fakes.network_graphs import RunningGraphBuilder, network_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zfserve_model.explanation import deconvnet
from zfserve_model.explanation.deconvnet import (
    OutOfRange,
    Position,
    Projection,
    StrongestUnit,
    Trace,
    UnitRule,
    UnknownLayer,
    WholeMap,
    project,
    strongest_maps,
    trace,
)
from zfserve_model.explanation.rules import RULES
from zfserve_model.explanation.signals import Signal
from zfserve_model.layers.boxes import Step
from zfserve_model.layers.layer_table import layer_table
from zfserve_model.networks import ARCHITECTURES, INPUT_SIZE, Network, NetworkSpec, build_network

TOLERANCE = 1e-5
"""The largest difference relative to the reference's largest value."""


@cache
def traced(architecture: str, contrast_norm: bool = False) -> tuple[Network, Tensor, Trace]:
    """Returns a random network, an image and its trace. Tests share them and only read them."""
    generator = torch.Generator().manual_seed(3)
    spec = NetworkSpec(architecture, classes=4, hidden_width=16, contrast_norm=contrast_norm)
    network = build_network(spec, generator).eval()
    image = torch.randn(3, INPUT_SIZE, INPUT_SIZE, generator=generator)
    graph = network_graph(network)
    return network, image, trace(graph, image, trunk_layers(network))


def trunk_layers(network: Network) -> list[str]:
    return [name for name, _ in network.trunk.named_children()]


def on_whole_image(projection: Projection, size: int = INPUT_SIZE) -> Tensor:
    window = projection.window
    image = projection.pixels.new_zeros(3, size, size)
    image[:, window.top : window.bottom, window.left : window.right] = projection.pixels
    return image


def assert_same(actual: Tensor, expected: Tensor, what: str = "") -> None:
    largest = expected.abs().max().item()
    assert largest > 0, what
    assert (actual - expected).abs().max().item() <= TOLERANCE * largest, what


class PassedOver(torch.autograd.Function):
    """Runs a layer forward, and is the identity backward. The backward pass skips contrast norm like this."""

    @staticmethod
    def forward(context: Any, activations: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class PassedOverNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, activations: Tensor) -> Tensor:
        passed: Tensor = PassedOver.apply(activations, self.norm(activations.detach()))  # type: ignore[no-untyped-call]
        return passed


def captum_deconvolution(network: Network, image: Tensor, layer: str, selector: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns captum's projection. captum uses the plain gradient of a max-pool, so colliding switches add."""
    trunk = nn.Sequential()
    for name, module in network.trunk.named_children():
        trunk.add_module(name, PassedOverNorm(module) if isinstance(module, nn.LocalResponseNorm) else module)
        if name == layer:
            break
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "hooks will be removed after the attribution"
        attribution: Tensor = NeuronDeconvolution(trunk, trunk.get_submodule(layer)).attribute(image[None], selector)
    return attribution[0].detach()


def unit_selector(projection: Projection) -> Callable[[Tensor], Tensor]:
    """Returns half the square of the unit. captum starts from its gradient, which is the activation."""
    index, unit = projection.map, projection.unit
    if unit is None:
        return lambda output: (0.5 * output[:, index] ** 2).flatten(1).sum(1)
    return lambda output: 0.5 * output[:, index, unit.row, unit.column] ** 2


@pytest.mark.parametrize("contrast_norm", [False, True], ids=["plain", "contrast norm"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_captum_at_every_layer(architecture: str, contrast_norm: bool) -> None:
    network, image, traced_image = traced(architecture, contrast_norm)
    for layer, activations in traced_image.activations.items():
        best = strongest_maps(traced_image, layer, 1)
        corner = Position(0, activations.shape[-1] - 1)  # this corner tests the padding
        # The norm adds a step that does nothing, so one rule is enough there. captum's calls are expensive.
        for rule in (StrongestUnit(),) if contrast_norm else (StrongestUnit(), corner, WholeMap()):
            (projection,) = project(traced_image, layer, best, rule)
            expected = captum_deconvolution(network, image, layer, unit_selector(projection))
            if projection.activation == 0:
                assert not projection.pixels.any(), (layer, rule)
            else:
                assert_same(on_whole_image(projection), expected, f"{layer}, {rule}")


def test_a_negative_unit_keeps_its_sign() -> None:
    """A unit before the ReLU can be negative. Its projection then keeps the sign of the activation."""
    network, image, traced_image = traced("zfnet-fig3")
    lowest = traced_image.activations["conv2"][5].argmin().item()
    (projection,) = project(traced_image, "conv2", [5], Position(*divmod(int(lowest), 26)))
    assert projection.activation < 0
    expected = captum_deconvolution(network, image, "conv2", unit_selector(projection))
    assert_same(on_whole_image(projection), expected)


def test_a_whole_path_by_hand() -> None:
    """Projects each unit of the pool in: conv 1x1 (one map, red minus 1), ReLU, pool 3x3 s2, on 4x4 pixels."""
    builder = RunningGraphBuilder(3, 4, 4)
    conv = builder.add("Conv", "images", torch.tensor([1.0, 0.0, -2.0]).view(1, 3, 1, 1), torch.tensor([-1.0]))
    relu = builder.add("Relu", conv)
    builder.add("MaxPool", relu, outputs=["pool1"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    image = torch.zeros(3, 4, 4)
    image[0] = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [1, 3, 9, 2], [4, 0, 1, 11]])
    traced_image = trace(builder.build(), image, ["pool1"])
    assert traced_image.activations["pool1"][0].tolist() == [[8, 8], [8, 10]]
    (whole,) = project(traced_image, "pool1", [0], WholeMap())
    # Three units of 8 have switches to the same pixel (row 2, column 2); the unit of 10 has its own. The filter is
    # (1, 0, -2).
    red = torch.zeros(4, 4)
    red[2, 2], red[3, 3] = 24, 10
    assert torch.equal(whole.pixels, torch.stack([red, 0 * red, -2 * red]))
    assert (whole.unit, whole.activation) == (None, 10)
    (strongest,) = project(traced_image, "pool1", [0])
    assert (strongest.unit, strongest.activation) == (Position(1, 1), 10)
    assert strongest.pixels[0].tolist() == [[0, 0], [0, 10]]
    assert strongest.window == deconvnet.Window(left=2, top=2, right=4, bottom=4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_windows_are_the_receptive_fields_of_the_layer_table(architecture: str) -> None:
    network, _, traced_image = traced(architecture)
    for row in layer_table(network_graph(network)):
        for unit in (Position(0, row.width - 1), Position(row.height // 2, row.width // 3)):
            (projection,) = project(traced_image, row.name, [1], unit)
            top, left = row.offset + unit.row * row.stride, row.offset + unit.column * row.stride
            window = projection.window
            assert (window.top, window.left) == (max(top, 0), max(left, 0)), row.name
            assert window.bottom == min(top + row.receptive_field, INPUT_SIZE), row.name
            assert window.right == min(left + row.receptive_field, INPUT_SIZE), row.name
            assert projection.pixels.shape == (3, window.bottom - window.top, window.right - window.left)
            assert projection.pixels.is_contiguous()
        (projection,) = project(traced_image, row.name, [1], WholeMap())
        assert projection.window == deconvnet.Window(0, 0, INPUT_SIZE, INPUT_SIZE), row.name


def test_maps_come_strongest_first() -> None:
    _, _, traced_image = traced("zfnet-fig3")
    for layer, activations in traced_image.activations.items():
        strengths = [activations[index].max().item() for index in strongest_maps(traced_image, layer, 9)]
        assert strengths == sorted(strengths, reverse=True)
        assert strengths[0] == activations.max().item()
        assert [projection.activation for projection in project(traced_image, layer, [3, 0])] == [
            activations[3].max().item(),
            activations[0].max().item(),
        ]


def test_equally_strong_maps_come_in_their_own_order() -> None:
    zeros = torch.zeros(5, 2, 2)
    zeros[3, 1, 0] = 1
    traced_image = replace(traced("zfnet-fig3")[2], activations={"relu1": zeros})
    assert strongest_maps(traced_image, "relu1", 5) == [3, 0, 1, 2, 4]


def test_results_come_in_the_order_asked_for_across_chunks() -> None:
    _, _, traced_image = traced("zfnet-fig3")
    maps = [*range(40, 40 - 2 * deconvnet.CHUNK, -1), 7, 7]
    together = list(project(traced_image, "conv2", maps))
    assert [projection.map for projection in together] == maps
    for projection in together:
        (alone,) = project(traced_image, "conv2", [projection.map])
        assert (alone.unit, alone.window) == (projection.unit, projection.window)
        assert_same(projection.pixels, alone.pixels)


def test_a_consumer_who_stops_early_saves_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, traced_image = traced("zfnet-fig3")
    convolved: list[tuple[str, int]] = []  # the number of signals in each transposed convolution
    rule = RULES["Conv"]

    def counted(step: Step, signal: Signal, kept: Tensor | None) -> Signal:
        convolved.append((step.output, len(signal)))
        return rule.step(step, signal, kept)

    monkeypatch.setitem(RULES, "Conv", rule._replace(step=counted))
    # With so little memory, the signals go down together as far as conv3 only.
    projections = project(traced_image, "conv3", range(256), memory_bytes=1 << 18)
    assert convolved == []
    next(projections)
    assert convolved == [("conv3", deconvnet.CHUNK), ("conv2", 1), ("conv1", 1)]
    next(projections)
    assert convolved == [("conv3", deconvnet.CHUNK), ("conv2", 1), ("conv1", 1), ("conv2", 1), ("conv1", 1)]


def test_no_maps_give_no_projections() -> None:
    assert list(project(traced("zfnet-fig3")[2], "conv1", [])) == []


def test_gradients_work_between_two_results() -> None:
    """Inference mode must not leak from the generator into its consumer."""
    _, _, traced_image = traced("zfnet-fig3")
    for _ in project(traced_image, "conv1", [0, 1]):
        value = torch.ones(1, requires_grad=True)
        (value * 2).sum().backward()  # type: ignore[no-untyped-call]
        assert value.grad is not None


def test_many_threads_share_one_trace() -> None:
    _, image, traced_image = traced("zfnet-fig3")

    def work(index: int) -> tuple[Tensor, list[Tensor]]:
        layer = ("conv2", "pool1", "conv1", "relu2")[index % 4]
        again = trace(traced_image.graph, image, ["pool5"]).activations["pool5"]
        return again, [projection.pixels for projection in project(traced_image, layer, [index, 5])]

    alone = [work(index) for index in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(8)))
    for (activations, pixels), (same_activations, same_pixels) in zip(alone, together, strict=True):
        torch.testing.assert_close(same_activations, activations)
        for mine, theirs in zip(pixels, same_pixels, strict=True):
            assert_same(theirs, mine)


def test_the_graph_is_only_read() -> None:
    _, image, traced_image = traced("zfnet-fig3")
    graph = traced_image.graph
    before = {name: tensor.clone() for name, tensor in graph.constants.items()}
    list(project(trace(graph, image, ["conv2"]), "conv2", [0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.constants.items())


@given(scale=st.floats(1e-3, 1e3), layer=st.sampled_from(["conv1", "relu2", "pool2", "conv3"]))
@settings(max_examples=15)
def test_projections_are_positively_homogeneous(scale: float, layer: str) -> None:
    """A unit that is c times as strong has a projection that is c times as strong, if the switches are fixed."""
    _, _, traced_image = traced("zfnet-fig3")
    activations = {name: scale * values for name, values in traced_image.activations.items()}
    scaled = replace(traced_image, activations=activations)
    index = strongest_maps(traced_image, layer, 1)
    (projection,), (stronger,) = project(traced_image, layer, index), project(scaled, layer, index)
    assert_same(stronger.pixels, scale * projection.pixels)


@given(
    layer=st.sampled_from(["conv1", "pool1", "conv2", "pool2", "conv3"]),
    down=st.integers(0, 2),
    right=st.integers(0, 2),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=15)
def test_an_image_moved_by_the_stride_moves_the_projection(layer: str, down: int, right: int, seed: int) -> None:
    network, _, still_image = traced("zfnet-fig3")
    (row,) = (row for row in layer_table(network_graph(network)) if row.name == layer)
    # The picture has a wide black border, so no window meets the image's edge before or after the move.
    picture = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed))
    shift_down, shift_right = down * row.stride, right * row.stride

    def projected(top: int, left: int) -> Projection:
        image = torch.zeros(3, INPUT_SIZE, INPUT_SIZE)
        image[:, top : top + 32, left : left + 32] = picture
        traced_image = trace(still_image.graph, image, [layer])
        return next(project(traced_image, layer, strongest_maps(traced_image, layer, 1)))

    still, moved = projected(96, 96), projected(96 + shift_down, 96 + shift_right)
    assert still.unit is not None
    assert moved.unit == Position(still.unit.row + down, still.unit.column + right)
    assert (moved.window.top - still.window.top, moved.window.left - still.window.left) == (shift_down, shift_right)
    assert_same(moved.pixels, still.pixels)


@pytest.mark.parametrize(
    ("layer", "maps", "rule", "error", "message"),
    [
        ("conv9", [0], StrongestUnit(), UnknownLayer, "conv1, relu1"),
        ("fc6", [0], StrongestUnit(), UnknownLayer, "'fc6'"),
        ("conv1", [0, 96], StrongestUnit(), OutOfRange, "0 to 95, not 96"),
        ("conv1", [-1], StrongestUnit(), OutOfRange, "not -1"),
        ("conv5", [0], Position(13, 0), OutOfRange, "rows 0 to 12"),
        ("conv5", [0], Position(0, -1), OutOfRange, "columns 0 to 12"),
    ],
)
def test_what_does_not_exist_is_refused_at_once(
    layer: str, maps: list[int], rule: UnitRule, error: type[Exception], message: str
) -> None:
    _, _, traced_image = traced("zfnet-fig3")
    with pytest.raises(error, match=message):
        project(traced_image, layer, maps, rule)


@pytest.mark.parametrize("count", [0, -1, 97])
def test_a_layer_has_only_so_many_strongest_maps(count: int) -> None:
    with pytest.raises(OutOfRange, match="1 to 96"):
        strongest_maps(traced("zfnet-fig3")[2], "conv1", count)


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (224, 224, 3), (1, 224, 224)])
def test_only_one_rgb_image_can_be_traced(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(3, 224, 224\)"):
        trace(traced("zfnet-fig3")[2].graph, torch.zeros(shape), ["conv1"])
