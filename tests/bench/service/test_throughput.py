from collections.abc import Callable

import pytest
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.reports.findings import Report
from zfserve_bench.service.throughput import measure_throughput
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]
ConfigOf = Callable[[Bundle], BenchmarkConfig]
Figures = Callable[[Report], dict[str, float]]


@pytest.mark.usefixtures("_no_processes_left")
def test_throughput(colour_bundle: ColourBundle, config_of: ConfigOf, figures: Figures) -> None:
    report = measure_throughput(config_of(colour_bundle()))
    assert list(figures(report)) == ["fp32, 32 clients", "fp32, 8 clients"]
    for finding in report.findings:
        assert finding.reference is not None
        assert finding.measured.unit == finding.reference.unit == "images/s"
    assert any("in process batches of" in note for note in report.notes)
