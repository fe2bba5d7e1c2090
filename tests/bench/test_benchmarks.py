"""Every benchmark, quickly, on something tiny: that it measures what it says and leaves nothing running. No figure is
judged here."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from zfserve_bench.compute.decode import measure_decode
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
from zfserve_bench.inputs import jpeg_file
from zfserve_bench.reports.findings import Report
from zfserve_bench.service.latency import measure_latency
from zfserve_bench.service.startup import measure_startup, resident_bytes, status_number
from zfserve_bench.service.throughput import measure_throughput
from zfserve_cli.service_process import ServiceFailed, running_service
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]
ConfigOf = Callable[[Bundle], BenchmarkConfig]


def children() -> set[int]:
    """Processes whose parent this one is."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if status_number(status.read_text(), "PPid") == os.getpid():
                found.add(int(status.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def _leaves_nothing_running() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def figures(report: Report) -> dict[str, float]:
    """By name; all of them are finite, positive and not judged."""
    assert all(finding.limit is None for finding in report.findings)
    values = {finding.name: finding.figure.value for finding in report.findings}
    assert all(0 < value < float("inf") for value in values.values()), values
    return values


@pytest.mark.usefixtures("_leaves_nothing_running")
def test_throughput(colour_bundle: ColourBundle, config_of: ConfigOf) -> None:
    report = measure_throughput(config_of(colour_bundle()))
    assert list(figures(report)) == ["fp32, 32 clients", "fp32, 8 clients"]
    for finding in report.findings:
        assert finding.reference is not None
        assert finding.measured.unit == finding.reference.unit == "images/s"
    assert any("in process batches of" in note for note in report.notes)


@pytest.mark.usefixtures("_leaves_nothing_running")
def test_latency(colour_bundle: ColourBundle, config_of: ConfigOf) -> None:
    report = measure_latency(config_of(colour_bundle()))
    assert list(figures(report)) == ["fp32, zfserve, median", "fp32, a bare server, median"]
    for finding in report.findings:
        assert finding.reference is not None
        assert finding.measured.value > finding.reference.value > 0, "a mean over three channels is no match for a call"


def test_decode(colour_bundle: ColourBundle, config_of: ConfigOf) -> None:
    config = config_of(colour_bundle())
    assert list(figures(measure_decode(config))) == ["decode and resize"]
    skipped = measure_decode(replace(config, photos=()))
    assert not skipped.findings
    assert skipped.notes[0].startswith("skipped: no photos")


def test_the_jpeg_has_the_size_asked_for(config_of: ConfigOf, colour_bundle: ColourBundle) -> None:
    (photo, _) = config_of(colour_bundle()).photos
    smaller, larger = jpeg_file(photo, 50, 40, 50), jpeg_file(photo, 50, 40, 95)
    assert smaller[:3] == larger[:3] == b"\xff\xd8\xff"
    assert len(smaller) < len(larger)


def test_projection(network_bundle: Bundle, config_of: ConfigOf) -> None:
    before = torch.get_num_threads()
    report = measure_projection(config_of(network_bundle))
    assert list(figures(report)) == [
        "in forward passes",
        "for a class, in forward passes",
        "9 captum calls, times as fast",
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


@pytest.mark.usefixtures("_leaves_nothing_running")
def test_startup(network_bundle: Bundle, config_of: ConfigOf) -> None:
    found = figures(measure_startup(config_of(network_bundle)))
    assert found["start to Project"] > 0
    assert found["resident memory, server"] < found["resident memory, worker"], "only the worker holds torch"


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match="there is no bundle at"), running_service(tmp_path / "none", tmp_path):
        pass


def test_reads_the_status_of_a_process() -> None:
    assert status_number("Name:\tpython\nPPid:\t7\nVmRSS:\t  2048 kB\n", "VmRSS") == 2048
    assert resident_bytes(os.getpid()) > 10e6
