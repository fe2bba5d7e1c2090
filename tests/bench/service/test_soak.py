"""Tests the findings of a soak on samples and records made by hand."""

import csv
import os
from dataclasses import replace

import pytest
from zfserve_bench.load.protocol import Call, Kind, tally
from zfserve_bench.reports.findings import Finding
from zfserve_bench.service.soak import (
    BARS,
    Sample,
    anonymous_bytes,
    make_findings,
    queue_depth,
    slope,
    sparkline,
    to_csv,
)
from zfserve_cli.top.metrics_text import parse_metrics

FLAT = Sample(0.0, 200.0, 500.0, 30, 20, 15, 12, 0.0, 0, 0)


def soak(**growth: float) -> list[Sample]:
    """Returns two hours of samples, one a minute. Each named value grows by the given amount a minute."""
    return [
        replace(
            FLAT,
            elapsed_s=60.0 * minute,
            **{name: getattr(FLAT, name) + per_min * minute for name, per_min in growth.items()},
        )
        for minute in range(120)
    ]


def missed(samples: list[Sample], records: list[Call] | None = None) -> list[str]:
    findings: list[Finding] = make_findings(samples, records or [], judged=True)
    assert sum(finding.limit is not None for finding in findings) == 7
    return [finding.name for finding in findings if finding.holds is False]


def test_nothing_grows() -> None:
    assert missed(soak()) == []


@pytest.mark.parametrize(
    ("growth", "names"),
    [
        ({"server_mb": 0.19}, []),
        ({"server_mb": 0.21}, ["memory, server"]),
        ({"worker_mb": 0.21}, ["memory, worker"]),
        ({"server_files": 1}, ["open files, server, fewest"]),
        ({"worker_files": 1, "worker_threads": 1}, ["open files, worker, fewest", "threads, worker, fewest"]),
        ({"server_threads": 1}, ["threads, server, fewest"]),
    ],
)
def test_a_value_that_grows_misses_its_limit(growth: dict[str, float], names: list[str]) -> None:
    assert missed(soak(**growth)) == names


def test_memory_that_grew_before_the_last_half_is_no_leak() -> None:
    samples = [replace(one, server_mb=min(200.0, 3 * at)) for at, one in enumerate(soak())]
    assert missed(samples) == []


def test_connections_that_come_and_go_are_no_leak() -> None:
    samples = [replace(one, server_files=30 + at % 3) for at, one in enumerate(soak())]
    assert missed(samples) == []


def test_one_call_with_an_unexpected_status_misses_the_limit() -> None:
    records = [Call(Kind.BAD_INPUT, "INVALID_ARGUMENT", 0, 0), Call(Kind.RAW, "INTERNAL", 0, 0)]
    assert missed(soak(), records) == ["calls that ended wrongly"]
    assert tally(records) == "bad input INVALID_ARGUMENT 1, classify raw INTERNAL 1"


def test_the_slope_is_the_median_over_all_pairs() -> None:
    assert slope([0, 1, 2], [1, 3, 5]) == pytest.approx(2)
    assert slope([0, 1, 2], [1, 4, 4]) == pytest.approx(1.5)
    assert slope(range(8), [1, 1, 6, 6, 6, 6, 6, 6]) == 0, "one step is no slope"
    assert slope(range(9), [1, 1, 1, 2, 2, 2, 3, 3, 3]) == pytest.approx(0.25, abs=0.1), "a staircase is one"


def test_reads_the_memory_of_a_process() -> None:
    assert 1e6 < anonymous_bytes(os.getpid()) < 1e11


def test_bars_from_the_least_to_the_greatest() -> None:
    assert sparkline([1, 1, 8, 4.5]) == f"{BARS[0]}{BARS[0]}{BARS[-1]}{BARS[4]}"
    assert sparkline([5, 5]) == BARS[0] * 2
    assert sparkline(list(range(600)), width=8) == BARS


def test_samples_as_csv() -> None:
    first, second = csv.DictReader(to_csv(soak(server_mb=1.239)[:2]).splitlines())
    assert first["server_mb"] == "200.0"
    assert (second["elapsed_s"], second["server_mb"], second["calls"]) == ("60.0", "201.24", "0")


def test_the_queue_depth_is_that_of_all_models() -> None:
    text = 'zfserve_queue_depth{model="a"} 3\nzfserve_queue_depth{model="b"} 4\nzfserve_in_flight 9\n'
    assert queue_depth(parse_metrics(text)) == 7
