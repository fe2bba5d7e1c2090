"""Tests the findings of a rolling restart on records made by hand, and a quick run on a tiny network."""

from collections.abc import Callable

import pytest
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.fleet.rolling import Restart, count_retries, make_findings, measure_rolling
from zfserve_bench.load.protocol import Call, Kind
from zfserve_bench.reports.findings import Finding
from zfserve_runtime.bundle import Bundle

RESTARTS = [Restart(10.0, 12.0, 14.5, 15.0), Restart(20.0, 20.5, 28.0, 29.0)]


def record(began_s: float, seconds: float = 0.01, status: str = "OK") -> Call:
    return Call(Kind.RAW, status, began_s, seconds)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_calls_are_counted_by_their_start() -> None:
    records = [record(at_s) for at_s in (1, 9.9, 10, 14, 15, 16, 21, 28, 30)]
    found = by_name(make_findings(records, RESTARTS, again=4, judged=True))
    calls = found["calls"]
    assert calls.reference is not None
    assert (calls.measured.value, calls.reference.value, calls.figure.value) == (5, 4, 9)
    assert found["failed calls"].holds is True
    assert found["calls tried again"].figure.value == 4
    assert found["longest time to stop"].figure.value == 2
    assert found["longest time until ready"].figure.value == 7.5
    assert found["longest time until called"].figure.value == 1


def test_one_failed_call_misses_the_limit_whenever_it_began() -> None:
    for began_s in (5.0, 11.0):
        records = [record(1), record(2), record(10), record(14), record(began_s, status="CANCELLED")]
        failed = by_name(make_findings(records, RESTARTS, again=0, judged=True))["failed calls"]
        assert failed.figure.value == 1
        assert failed.holds is False


def test_latencies_during_restarts_are_separate() -> None:
    records = [record(11, 0.2)] * 3 + [record(1, 0.1)] * 3
    median = by_name(make_findings(records, RESTARTS, again=0, judged=True))["latency, median"]
    assert median.reference is not None
    assert (median.measured.value, median.reference.value) == pytest.approx((200, 100))


def test_retries_are_counted_in_the_servers_log() -> None:
    log = (
        '{"message": "call", "earlier_attempts": "1"}\n'
        "a line of another library\n"
        '{"message": "call"}\n{"message": "call", "earlier_attempts": "2"}\n'
    )
    assert count_retries(log) == 2


def test_no_call_fails_while_replicas_are_restarted(
    colour_bundle: Callable[..., Bundle], config_of: Callable[[Bundle], BenchmarkConfig]
) -> None:
    report = measure_rolling(config_of(colour_bundle()), count=2)
    found = by_name(list(report.findings))
    assert found["calls"].measured.value > 0
    assert found["failed calls"].figure.value == 0, report.notes
