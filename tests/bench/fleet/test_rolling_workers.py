"""Runs the benchmark quickly on a tiny network. test_rolling.py tests its findings."""

from collections.abc import Callable
from dataclasses import replace

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.fleet.rolling_workers import measure_rolling_workers
from zfserve_runtime.bundle import Bundle


def test_no_projection_fails_while_workers_are_restarted(
    network_bundle: Bundle, config_of: Callable[[Bundle], BenchmarkConfig]
) -> None:
    config = config_of(network_bundle)
    # A rate that one worker serves even on a busy machine, so that a failed call is the restart's fault.
    report = measure_rolling_workers(config, per_s=1.5)
    found = {finding.name: finding for finding in report.findings}
    assert found["calls"].measured.value > 0
    assert found["failed calls"].figure.value == 0, report.notes
    (note,) = measure_rolling_workers(replace(config, photos=())).notes
    assert note.startswith("skipped: no photos")
