import os
from collections.abc import Callable
from pathlib import Path

import pytest
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.reports.findings import Report
from zfserve_bench.service.startup import measure_startup, resident_bytes, status_number
from zfserve_cli.service_process import ServiceFailed, running_service
from zfserve_runtime.bundle import Bundle

ConfigOf = Callable[[Bundle], BenchmarkConfig]
Figures = Callable[[Report], dict[str, float]]


@pytest.mark.usefixtures("_no_processes_left")
def test_startup(network_bundle: Bundle, config_of: ConfigOf, figures: Figures) -> None:
    found = figures(measure_startup(config_of(network_bundle)))
    assert found["start to Project"] > 0
    assert found["resident memory, server"] < found["resident memory, worker"], "only the worker holds torch"


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match="there is no bundle at"), running_service(tmp_path / "none", tmp_path):
        pass


def test_reads_the_status_of_a_process() -> None:
    assert status_number("Name:\tpython\nPPid:\t7\nVmRSS:\t  2048 kB\n", "VmRSS") == 2048
    assert resident_bytes(os.getpid()) > 10e6
