"""The layer table agrees with the sizes in the paper, and with perturbations of real pixels."""

import os
import subprocess
import sys

import pytest
import torch
from fakes.network_graphs import network_graph
from torch import nn
from zfserve_model.layers.layer_table import layer_table
from zfserve_model.networks import ARCHITECTURES, INPUT_SIZE, Network, NetworkSpec


def small_network(architecture: str = "zfnet", *, contrast_norm: bool = False, batch_norm: bool = False) -> Network:
    return Network(NetworkSpec(architecture, 10, 16, contrast_norm, batch_norm))


def sizes(network: Network) -> list[int]:
    return [row.height for row in layer_table(network_graph(network)) if row.kind in ("conv", "pool")]


@pytest.mark.parametrize("architecture", ["zfnet", "zfnet-fig3"])
def test_sizes_are_those_of_the_paper(architecture: str) -> None:
    assert sizes(small_network(architecture)) == [110, 55, 26, 13, 13, 13, 13, 6]


def test_sizes_of_alexnet() -> None:
    assert sizes(small_network("alexnet")) == [55, 27, 27, 13, 13, 13, 13, 6]


def test_names_and_kinds_follow_the_trunk() -> None:
    rows = layer_table(network_graph(small_network(contrast_norm=True)))
    assert [(row.name, row.kind) for row in rows[:4]] == [
        ("conv1", "conv"),
        ("relu1", "relu"),
        ("norm1", "norm"),
        ("pool1", "pool"),
    ]
    last = rows[-1]
    assert (last.name, last.stage, last.channels, last.height, last.width) == ("pool5", "stage5", 512, 6, 6)
    assert (last.receptive_field, last.stride, last.offset) == (171, 32, -49)
    assert (last.receptive_field_width, last.stride_width, last.offset_width) == (171, 32, -49)
    assert not last.whole_image


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shapes_are_those_of_the_forward_pass(architecture: str) -> None:
    network, activations = small_network(architecture), torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE)
    for row, module in zip(layer_table(network_graph(network)), network.trunk, strict=True):
        activations = module(activations)
        assert (row.channels, row.height, row.width) == activations.shape[1:]


def test_what_a_worker_computes_needs_no_compiler() -> None:
    """The meta device imports SymPy and torch._dynamo, which took a second of a worker's start and 80 MB."""
    program = """
import sys, torch
from fakes.network_graphs import network_graph
from zfserve_model.explanation.deconvnet import project, trace
from zfserve_model.layers.layer_table import layer_table
from zfserve_model.networks import Network, NetworkSpec

network = Network(NetworkSpec("zfnet", 10, 16)).eval()
layer_table(network_graph(network))
list(project(trace(network_graph(network), torch.zeros(3, 224, 224), ["conv5"]), "conv5", [0]))
print(*{"sympy", "torch._dynamo"} & set(sys.modules))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    imported = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    ).stdout.split()
    assert imported == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_receptive_fields_are_what_units_react_to(architecture: str) -> None:
    """Counts along one axis. With positive weights a unit depends on each pixel in its field and on no other."""
    network = small_network(architecture)
    layers = [(row, network.trunk.get_submodule(row.name)) for row in layer_table(network_graph(network))]
    seen = torch.eye(INPUT_SIZE)[None, None]  # (1, 1, pixel, unit): whether the unit sees the pixel
    for row, module in layers:
        if isinstance(module, nn.Conv2d):
            kernel = torch.ones(1, 1, 1, module.kernel_size[1])
            padding = (0, int(module.padding[1]))
            seen = nn.functional.conv2d(seen, kernel, None, (1, module.stride[1]), padding).clamp(max=1)
        elif isinstance(module, nn.MaxPool2d):
            seen = nn.functional.max_pool2d(seen, (1, 3), (1, 2), ceil_mode=True)
        expected = torch.zeros(INPUT_SIZE, row.width)
        for unit in range(row.width):
            first = row.offset + unit * row.stride
            expected[max(first, 0) : first + row.receptive_field, unit] = 1
        assert torch.equal(seen[0, 0], expected), row.name


def test_a_perturbed_pixel_changes_the_units_that_see_it_and_no_others() -> None:
    generator = torch.Generator().manual_seed(5)
    network = small_network("zfnet-fig3").double()
    images = torch.rand(1, 3, INPUT_SIZE, INPUT_SIZE, generator=generator).double().repeat(2, 1, 1, 1)
    row_touched, column_touched = 61, 140
    images[1, :, row_touched, column_touched] += 10.0
    for row in layer_table(network_graph(network)):
        with torch.inference_mode():
            images = network.trunk.get_submodule(row.name)(images)
        changed = (images[0] != images[1]).any(0).nonzero()
        for axis, touched in enumerate((row_touched, column_touched)):
            seeing = [
                unit for unit in range(row.width) if 0 <= touched - row.offset - unit * row.stride < row.receptive_field
            ]
            reached = set(changed[:, axis].tolist())
            # Above conv1, ReLUs and max-pools can hide a change from a unit that sees it, but cannot show it to others.
            assert reached == set(seeing) if row.name == "conv1" else reached <= set(seeing), row.name
