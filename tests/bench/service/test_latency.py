from collections.abc import Callable

import pytest
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.reports.findings import Report
from zfserve_bench.service.latency import measure_latency
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]
ConfigOf = Callable[[Bundle], BenchmarkConfig]
Figures = Callable[[Report], dict[str, float]]


@pytest.mark.usefixtures("_no_processes_left")
def test_latency(colour_bundle: ColourBundle, config_of: ConfigOf, figures: Figures) -> None:
    report = measure_latency(config_of(colour_bundle()))
    assert list(figures(report)) == ["fp32, zfserve, median", "fp32, a bare server, median"]
    for finding in report.findings:
        assert finding.reference is not None
        assert finding.measured.value > finding.reference.value > 0, "a mean over three channels is no match for a call"
