from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.cells_network import write_cells_bundle
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.reports.findings import Report
from zfserve_bench.service.occlusion import measure_occlusion
from zfserve_runtime.bundle import Bundle, load_bundle

ConfigOf = Callable[[Bundle], BenchmarkConfig]


@pytest.mark.usefixtures("_no_processes_left")
def test_occlusion(tmp_path: Path, config_of: ConfigOf) -> None:
    report: Report = measure_occlusion(config_of(load_bundle(write_cells_bundle(tmp_path))))
    assert [finding.name for finding in report.findings] == [
        "fp32, 10 images",  # 3 x 3 places, and the photo itself
        "fp32, first grid",
        "fp32, first grid of the first call, which opens the engine",
        "fp32, p99 of Classify beside an occlusion, over Classify alone",
        "fp32, median of Classify beside an occlusion, over Classify alone",
    ]
    for finding in report.findings:
        assert finding.limit is None
        assert finding.measured.value > 0
