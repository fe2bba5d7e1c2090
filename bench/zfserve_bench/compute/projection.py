"""Benchmark `projection`: measures the nine strongest conv5 projections, in forward passes and beside captum."""

import importlib
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from zfserve_model.chain_attribution import attribute
from zfserve_model.chain_deconvnet import Projection, project, strongest_maps, trace
from zfserve_model.checkpoint import load_checkpoint
from zfserve_model.networks import Network
from zfserve_protos.extras import not_installed
from zfserve_runtime.bundle import WEIGHTS, InputSpec

from zfserve_bench.compute.peaks import torch_threads
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report

LAYER = "conv5"
MAPS = 9
MAX_FORWARD_PASSES = Limit("at most", 3.0)
MIN_SPEEDUP = Limit("at least", 5.0)
CAPTUM_TOLERANCE = 1e-4
"""The largest difference to captum, relative to the largest value of a projection."""


class CaptumDisagrees(RuntimeError):
    """Our projections differ from captum's, so their times cannot be compared."""


def measure_projection(config: BenchmarkConfig) -> Report:
    network = load_checkpoint(config.bundle.folder / WEIGHTS).network.requires_grad_(False)
    image = _image(config.bundle.manifest.input)
    operations: dict[str, Callable[[], object]] = {
        "forward": lambda: _forward(network, image),
        "project": lambda: project_strongest(network, image),
        "class": lambda: project_for_class(network, image),
    }
    notes = ["Each projection starts from a new photo. The time includes its forward pass, which keeps the switches."]
    if importlib.util.find_spec("captum") is not None:
        operations["captum"] = lambda: captum_strongest(network, image)
    else:
        notes.append(f"the comparison with captum was left out: {not_installed('it', 'dev')}")
    with torch_threads(config.threads):
        if "captum" in operations:
            require_agreement(project_strongest(network, image), captum_strongest(network, image))
        for operation in operations.values():
            operation()
        times = [
            {name: _time_ms(operation) for name, operation in operations.items()} for _ in range(config.effort.rounds)
        ]
    return Report(
        f"Projection: the {MAPS} strongest maps of {LAYER}",
        "reference",
        "ratio",
        tuple(compare_rounds(times, config.effort.judged)),
        tuple(notes),
    )


def compare_rounds(times: list[dict[str, float]], judged: bool) -> Iterator[Finding]:
    """Yields the findings: medians over the rounds of the ratios within a round.

    Args:
        times: for each round, the milliseconds by operation.
        judged: False to leave out the limits.
    """

    def median_ms(name: str) -> Quantity:
        return Quantity(statistics.median(one[name] for one in times), "ms")

    passes = statistics.median(one["project"] / one["forward"] for one in times)
    limit = MAX_FORWARD_PASSES if judged else None
    yield Finding("in forward passes", median_ms("project"), median_ms("forward"), Quantity(passes), limit)
    for_class = statistics.median(one["class"] / one["forward"] for one in times)
    yield Finding("for a class, in forward passes", median_ms("class"), median_ms("forward"), Quantity(for_class))
    if "captum" in times[0]:
        speedup = statistics.median(one["captum"] / one["project"] for one in times)
        limit = MIN_SPEEDUP if judged else None
        yield Finding(
            f"{MAPS} captum calls, speed-up", median_ms("project"), median_ms("captum"), Quantity(speedup), limit
        )


def project_strongest(network: Network, image: Tensor) -> list[Projection]:
    """Returns the projections of the strongest maps of a new image."""
    traced = trace(network, image)
    return list(project(traced, LAYER, strongest_maps(traced, LAYER, MAPS)))


def project_for_class(network: Network, image: Tensor) -> list[Projection]:
    """Returns the projections of the maps that contribute most to the most probable class of a new image."""
    traced = trace(network, image)
    attribution = attribute(network, traced, LAYER)
    maps = attribution.leading_maps(MAPS)
    return list(project(traced, LAYER, maps, attribution.leading_units(maps)))


def captum_strongest(network: Network, image: Tensor) -> list[Tensor]:
    """Returns the same projections from captum, with one call for each map.

    Each is the gradient for the whole input, float32 (3, H, W), and begins with 1 at the unit.
    """
    captum = importlib.import_module("captum.attr")
    activations = network.trunk[: _position(network) + 1](image[None])[0]
    strengths = activations.flatten(1).amax(1)
    deconvolution = captum.NeuronDeconvolution(network, network.trunk.get_submodule(LAYER))
    gradients = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum warns at every call that it sets hooks
        for index in strengths.sort(descending=True, stable=True).indices[:MAPS].tolist():
            row, column = divmod(int(activations[index].argmax()), activations.shape[-1])
            # A clone, because captum makes the input require a gradient.
            gradients.append(deconvolution.attribute(image[None].clone(), (index, row, column))[0])
    return gradients


def require_agreement(projections: list[Projection], gradients: list[Tensor]) -> None:
    """Raises CaptumDisagrees if a projection differs from its gradient by more than `CAPTUM_TOLERANCE`."""
    for projection, gradient in zip(projections, gradients, strict=True):
        window = projection.window
        expected = gradient[:, window.top : window.bottom, window.left : window.right] * projection.activation
        difference = (projection.pixels - expected).abs().max() / expected.abs().max()
        if not difference <= CAPTUM_TOLERANCE:
            raise CaptumDisagrees(f"map {projection.map} of {LAYER} differs from captum's by {difference:.2g}")


@torch.inference_mode()
def _forward(network: Network, image: Tensor) -> Tensor:
    logits: Tensor = network(image[None])
    return logits


def _image(spec: InputSpec) -> Tensor:
    """Returns a random image, float32 (3, H, W), RGB, normalised."""
    pixels = torch.from_numpy(random_images(spec, 1)[0]).float() / 255
    return ((pixels - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(2, 0, 1).contiguous()


def _position(network: Network) -> int:
    return [name for name, _ in network.trunk.named_children()].index(LAYER)


def _time_ms(operation: Callable[[], object]) -> float:
    began = time.perf_counter()
    operation()
    return (time.perf_counter() - began) * 1e3
