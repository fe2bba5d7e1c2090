import pytest
import torch
from torch import nn
from zfserve_bench.compute.peaks import torch_threads
from zfserve_bench.compute.projected_networks import Bottleneck, ProjectedNetwork, as_projected
from zfserve_bench.compute.projection import (
    CaptumDisagrees,
    Limits,
    captum_strongest,
    compare_rounds,
    measure_network,
    project_strongest,
    require_agreement,
)
from zfserve_bench.reports.findings import Limit

LIMITS = Limits(Limit("at most", 3.0), Limit("at least", 5.0))


@pytest.fixture(scope="module")
def network() -> ProjectedNetwork:
    """Returns a network with a residual block, which is quick to project."""
    torch.manual_seed(1)
    block = Bottleneck(8, 4, 2)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), block, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return as_projected("small", module, block.relu, -1, size=32)


def test_a_network_is_measured(network: ProjectedNetwork) -> None:
    with torch_threads(1):
        times = measure_network(network, rounds=2)
    assert [set(each) for each in times] == [{"forward", "project", "class", "captum"}] * 2
    assert all(ms > 0 for each in times for ms in each.values())
    assert [finding.name for finding in compare_rounds("small", times, None)] == [
        "small: in forward passes",
        "small: for a class, in forward passes",
        "small: 9 captum calls, speed-up",
    ]


def test_captum_must_compute_the_same(network: ProjectedNetwork) -> None:
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch_threads(1):
        projections, gradients = project_strongest(network, image), captum_strongest(network, image)
    require_agreement(projections, gradients)
    with pytest.raises(CaptumDisagrees, match=f"map {projections[0].map} differs"):
        require_agreement(projections, gradients[::-1])


def test_projection_ratios_are_medians_over_rounds() -> None:
    rounds = [
        {"forward": 10.0, "project": 20.0, "class": 30.0, "captum": 140.0},
        {"forward": 20.0, "project": 50.0, "class": 80.0, "captum": 300.0},
        {"forward": 10.0, "project": 90.0, "class": 90.0, "captum": 90.0},
    ]
    passes, for_class, speedup = compare_rounds("net", rounds, LIMITS)
    assert passes.figure.value == 2.5
    assert passes.holds
    assert (for_class.figure.value, for_class.limit) == (4, None)
    assert speedup.figure.value == 6
    assert speedup.holds
    without_captum = [{"forward": 10.0, "project": 40.0, "class": 50.0}]
    alone, _ = compare_rounds("net", without_captum, LIMITS)
    assert alone.holds is False
