from collections.abc import Callable

import pytest
import torch
from zfserve_bench.compute.peaks import torch_threads
from zfserve_bench.compute.projection import (
    CaptumDisagrees,
    captum_strongest,
    compare_rounds,
    measure_projection,
    project_strongest,
    require_agreement,
)
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.reports.findings import Report
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_runtime.bundle import Bundle

ConfigOf = Callable[[Bundle], BenchmarkConfig]
Figures = Callable[[Report], dict[str, float]]


def test_projection(network_bundle: Bundle, config_of: ConfigOf, figures: Figures) -> None:
    before = torch.get_num_threads()
    report = measure_projection(config_of(network_bundle))
    assert list(figures(report)) == [
        "in forward passes",
        "for a class, in forward passes",
        "9 captum calls, speed-up",
    ]
    assert torch.get_num_threads() == before


def test_captum_must_compute_the_same() -> None:
    network = build_network(NetworkSpec("zfnet-fig3", 2, 16), torch.Generator().manual_seed(1)).eval()
    network.requires_grad_(False)
    image = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch_threads(1):
        projections, gradients = project_strongest(network, image), captum_strongest(network, image)
    require_agreement(projections, gradients)
    with pytest.raises(CaptumDisagrees, match="conv5 differs"):
        require_agreement(projections, gradients[::-1])


def test_projection_ratios_are_medians_over_rounds() -> None:
    rounds = [
        {"forward": 10.0, "project": 20.0, "class": 30.0, "captum": 140.0},
        {"forward": 20.0, "project": 50.0, "class": 80.0, "captum": 300.0},
        {"forward": 10.0, "project": 90.0, "class": 90.0, "captum": 90.0},
    ]
    passes, for_class, speedup = compare_rounds(rounds, judged=True)
    assert passes.figure.value == 2.5
    assert passes.holds
    assert (for_class.figure.value, for_class.limit) == (4, None)
    assert speedup.figure.value == 6
    assert speedup.holds
    without_captum = [{"forward": 10.0, "project": 40.0, "class": 50.0}]
    alone, _ = compare_rounds(without_captum, judged=True)
    assert alone.holds is False
