"""Benchmark `rolling`: restarts replicas one after the other under load. No call may fail.

The replicas are behind client-side round robin.
"""

import json
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from zfserve_cli.service_process import ServiceFailed

from zfserve_bench.config import BenchmarkConfig, Effort
from zfserve_bench.fleet.replicas import Replica, address_of, running_fleet
from zfserve_bench.inputs import random_images, raw_request
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import Call, ClosedLoop, Kind, OpenLoop, tally
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.services import usable_cpus

REPLICAS = 3

SHARE_OF_CAPACITY = 0.4
"""The load over the capacity. One replica is always down, and its start takes a core."""

MAX_CALLS_PER_S = 100.0
"""More calls of a tiny network would measure the load generator."""

PROBE = ClosedLoop(Kind.RAW, clients=8, warm_up=8, calls=64)

POLL_INTERVAL_S = 0.2
CALLED_AGAIN_TIMEOUT_S = 60.0

NONE_FAILED = Limit("at most", 0)


class Restart(NamedTuple):
    """Holds the times of one restart, by `time.monotonic`.

    Attributes:
        asked_s: SIGTERM was sent.
        ended_s: the old process had ended.
        ready_s: the new process was ready.
        called_s: the client had called the new process.
    """

    asked_s: float
    ended_s: float
    ready_s: float
    called_s: float


def measure_rolling(config: BenchmarkConfig, count: int = REPLICAS) -> Report:
    folder = config.scratch("rolling-load")
    requests = [raw_request(image) for image in random_images(config.bundle.manifest.input)]
    cpus = usable_cpus()
    with running_fleet(
        config, "rolling", [cpus[number % len(cpus)] for number in range(count)], "--log-format", "json"
    ) as replicas:
        with LoadGenerator(address_of(replicas), {Kind.RAW: requests}, folder) as generator:
            per_s = min(MAX_CALLS_PER_S, SHARE_OF_CAPACITY * generator.closed_loop(PROBE).calls_per_s)
            generator.start(OpenLoop.steady({Kind.RAW: per_s}))
            restarts = restart_in_turn(replicas, config.effort)
            records = generator.finish().calls
        again = sum(count_retries(start.log.read_text()) for replica in replicas for start in replica.starts)
    return describe(
        f"Rolling restart: {count} replicas behind client-side round robin, {per_s:.0f} calls per second",
        make_findings(records, restarts, again, config.effort.judged),
        f"{len(restarts)} restarts, one replica at a time: SIGTERM, drain, and a new process on the same port. "
        "The next restart waits until the client has called the new process, "
        "as Kubernetes does with `minReadySeconds`.",
        f"The load is at most {SHARE_OF_CAPACITY:.0%} of the capacity, in an open loop with equal intervals, on one "
        "channel with the options of `zfserve.Client`.",
        f"Calls: {tally(records)}.",
        "Tried again: calls that servers saw more than once, because the channel's policy retried them.",
    )


def describe(title: str, findings: Sequence[Finding], *notes: str) -> Report:
    """Returns the report of a rolling restart."""
    return Report(title, "otherwise", "figure", tuple(findings), notes, measured="during a restart")


def restart_in_turn(replicas: Sequence[Replica], effort: Effort) -> list[Restart]:
    """Restarts all replicas in turn, in each round. Raises ServiceFailed if one does not come back."""
    return [_restart(replica, effort.round_s) for _ in range(effort.rounds) for replica in replicas]


def _restart(replica: Replica, pause_s: float) -> Restart:
    """Stops and starts a replica, and waits until it is called again and for `pause_s`. Raises ServiceFailed."""
    asked_s = time.monotonic()
    replica.stop()
    ended_s = time.monotonic()
    replica.start()
    ready_s = time.monotonic()
    while not replica.answered():
        if time.monotonic() - ready_s > CALLED_AGAIN_TIMEOUT_S:
            raise ServiceFailed(f"a restarted replica was not called within {CALLED_AGAIN_TIMEOUT_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)
    called_s = time.monotonic()
    time.sleep(pause_s)
    return Restart(asked_s, ended_s, ready_s, called_s)


def make_findings(records: Sequence[Call], restarts: Sequence[Restart], again: int, judged: bool) -> list[Finding]:
    """Returns the findings on calls that began during a restart, beside those on all other calls.

    Args:
        again: the number of retries that the servers saw.
    """
    during = [one for one in records if any(each.asked_s <= one.began_s <= each.called_s for each in restarts)]
    apart = set(during)
    otherwise = [one for one in records if one not in apart]
    failed = [sum(not one.as_expected for one in part) for part in (during, otherwise)]
    findings = [
        _counted("calls", len(during), len(otherwise)),
        _counted("failed calls", failed[0], failed[1], NONE_FAILED if judged else None),
    ]
    for name, percent in (("latency, median", 50), ("latency, 99th percentile", 99)):
        measured = Quantity(percentile_ms(during, percent), "ms")
        reference = Quantity(percentile_ms(otherwise, percent), "ms") if len(otherwise) > 1 else None
        findings.append(Finding(name, measured, reference, measured))
    for name, seconds in (
        ("calls tried again", Quantity(again)),
        ("longest time to stop", Quantity(max(each.ended_s - each.asked_s for each in restarts), "s")),
        ("longest time until ready", Quantity(max(each.ready_s - each.ended_s for each in restarts), "s")),
        ("longest time until called", Quantity(max(each.called_s - each.ready_s for each in restarts), "s")),
    ):
        findings.append(Finding(name, seconds, None, seconds))
    return findings


def _counted(name: str, during: int, otherwise: int, limit: Limit | None = None) -> Finding:
    return Finding(name, Quantity(during), Quantity(otherwise), Quantity(during + otherwise), limit)


def percentile_ms(records: Sequence[Call], percent: int) -> float:
    """Returns a percentile of the durations of at least two calls of any status, in milliseconds."""
    return statistics.quantiles([one.seconds * 1e3 for one in records], n=100)[percent - 1]


def count_retries(log: str) -> int:
    """Returns the number of calls in a server's log that were retries of gRPC."""
    calls = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    return sum("earlier_attempts" in call for call in calls)
