"""Benchmark `projection`: measures nine projections of zfnet and of ResNet-50, in forward passes and beside captum."""

import importlib
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from zfserve_model.explanation.attribution import attribute
from zfserve_model.explanation.deconvnet import Projection, project, strongest_maps, trace
from zfserve_model.graph.execution import run
from zfserve_protos.extras import not_installed

from zfserve_bench.compute.peaks import torch_threads
from zfserve_bench.compute.projected_networks import ProjectedNetwork, resnet50, zfnet
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report

MAPS = 9
CAPTUM_TOLERANCE = 1e-2
"""The largest difference to captum, as the norm of the difference in times of the norm of a projection. captum runs the
module, whose batch norm is not folded. So in float32 a few switches of the pools fall differently, and move values."""


class Limits(NamedTuple):
    """Holds the limits of one network: of the time in forward passes, and of the speed beside captum."""

    forward_passes: Limit
    speedup: Limit


LIMITS = {
    zfnet: Limits(Limit("at most", 3.0), Limit("at least", 5.0)),
    resnet50: Limits(Limit("at most", 14.0), Limit("at least", 2.0)),
}


class CaptumDisagrees(RuntimeError):
    """Our projections differ from captum's, so their times cannot be compared."""


def measure_projection(config: BenchmarkConfig) -> Report:
    notes = [
        "Each projection starts from a new photo. The time includes its forward pass, which keeps the switches.",
        "The networks have random weights, on which the time does not depend.",
    ]
    if importlib.util.find_spec("captum") is None:
        notes.append(f"the comparison with captum was left out: {not_installed('it', 'dev')}")
    findings: list[Finding] = []
    with torch_threads(config.threads):
        for build, limits in LIMITS.items():
            network = build()
            times = measure_network(network, config.effort.rounds)
            findings += compare_rounds(network.name, times, limits if config.effort.judged else None)
    return Report(
        f"Projection: the {MAPS} strongest maps of a layer", "reference", "ratio", tuple(findings), tuple(notes)
    )


def measure_network(network: ProjectedNetwork, rounds: int) -> list[dict[str, float]]:
    """Returns the milliseconds of each operation, for each round.

    Raises:
        CaptumDisagrees: captum computes other projections.
    """
    shape = network.graph.shapes[network.graph.input][1:]
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    operations: dict[str, Callable[[], object]] = {
        "forward": lambda: _forward(network, image),
        "project": lambda: project_strongest(network, image),
        "class": lambda: project_for_class(network, image),
    }
    if importlib.util.find_spec("captum") is not None:
        operations["captum"] = lambda: captum_strongest(network, image)
        require_agreement(project_strongest(network, image), captum_strongest(network, image))
    for operation in operations.values():
        operation()
    return [{name: _time_ms(operation) for name, operation in operations.items()} for _ in range(rounds)]


def compare_rounds(name: str, times: list[dict[str, float]], limits: Limits | None) -> Iterator[Finding]:
    """Yields the findings: medians over the rounds of the ratios within a round.

    Args:
        name: the name of the network.
        times: for each round, the milliseconds by operation.
        limits: None to judge nothing.
    """

    def median_ms(operation: str) -> Quantity:
        return Quantity(statistics.median(one[operation] for one in times), "ms")

    passes = statistics.median(one["project"] / one["forward"] for one in times)
    limit = limits.forward_passes if limits else None
    yield Finding(f"{name}: in forward passes", median_ms("project"), median_ms("forward"), Quantity(passes), limit)
    for_class = statistics.median(one["class"] / one["forward"] for one in times)
    yield Finding(
        f"{name}: for a class, in forward passes", median_ms("class"), median_ms("forward"), Quantity(for_class)
    )
    if "captum" in times[0]:
        speedup = statistics.median(one["captum"] / one["project"] for one in times)
        limit = limits.speedup if limits else None
        yield Finding(
            f"{name}: {MAPS} captum calls, speed-up",
            median_ms("project"),
            median_ms("captum"),
            Quantity(speedup),
            limit,
        )


def project_strongest(network: ProjectedNetwork, image: Tensor) -> list[Projection]:
    """Returns the projections of the strongest maps of a new image."""
    traced = trace(network.graph, image, [network.tensor])
    return list(project(traced, network.tensor, strongest_maps(traced, network.tensor, MAPS)))


def project_for_class(network: ProjectedNetwork, image: Tensor) -> list[Projection]:
    """Returns the projections of the maps that contribute most to the most probable class of a new image."""
    traced = trace(network.graph, image, [network.tensor])
    attribution = attribute(traced, network.tensor)
    maps = attribution.leading_maps(MAPS)
    return list(project(traced, network.tensor, maps, attribution.leading_units(maps)))


def captum_strongest(network: ProjectedNetwork, image: Tensor) -> list[Tensor]:
    """Returns the same projections from captum, with one call for each map.

    Each is the gradient for the whole input, float32 (3, H, W), and begins with 1 at the unit.
    """
    captum = importlib.import_module("captum.attr")
    traced = trace(network.graph, image, [network.tensor])
    activations = traced.activations[network.tensor]
    deconvolution = captum.NeuronDeconvolution(network.module, network.layer)
    gradients = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum warns at every call that it sets hooks
        for index in strongest_maps(traced, network.tensor, MAPS):
            row, column = divmod(int(activations[index].argmax()), activations.shape[-1])
            # A clone, because captum makes the input require a gradient.
            gradients.append(deconvolution.attribute(image[None].clone(), (index, row, column))[0])
    return gradients


def require_agreement(projections: list[Projection], gradients: list[Tensor]) -> None:
    """Raises CaptumDisagrees if a projection differs from its gradient by more than `CAPTUM_TOLERANCE`."""
    for projection, gradient in zip(projections, gradients, strict=True):
        window = projection.window
        expected = gradient[:, window.top : window.bottom, window.left : window.right] * projection.activation
        difference = (projection.pixels - expected).norm() / expected.norm()
        if not difference <= CAPTUM_TOLERANCE:
            raise CaptumDisagrees(f"the projection of map {projection.map} differs from captum's by {difference:.2g}")


@torch.inference_mode()
def _forward(network: ProjectedNetwork, image: Tensor) -> Tensor:
    graph = network.graph
    return run(graph, {graph.input: image[None]}, [graph.logits])[graph.logits]


def _time_ms(operation: Callable[[], object]) -> float:
    began = time.perf_counter()
    operation()
    return (time.perf_counter() - began) * 1e3
