"""A rolling restart under load: replicas behind client-side round robin are stopped and started one after the other,
and no call may fail."""

import json
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from zfserve_cli.service_process import ServiceFailed

from zfserve_bench.fleet.replicas import Replica, address_of, running_fleet
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import Call, ClosedLoop, Kind, OpenLoop, tally
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.subject import Effort, Subject, available, noise, raw_request

REPLICAS = 3

SHARE_OF_CAPACITY = 0.4
"""That is asked for: one replica is away, and another's start takes a core meanwhile."""

MOST_PER_S = 100.0
"""Of a tiny network more could be asked for, and would measure the load generator."""

PROBE = ClosedLoop(Kind.RAW, clients=8, warm_up=8, calls=64)

LOOK_EVERY_S = 0.2
CALLED_AGAIN_S = 60.0

NONE_FAILED = Limit("at most", 0)


class Restart(NamedTuple):
    """By `time.monotonic`: asked to stop, ended, ready again, called again by the client."""

    asked_s: float
    ended_s: float
    ready_s: float
    called_s: float


def measure_rolling(subject: Subject, count: int = REPLICAS) -> Report:
    folder = subject.scratch("rolling-load")
    requests = [raw_request(image) for image in noise(subject.bundle.manifest.input)]
    cpus = available()
    with running_fleet(
        subject, "rolling", [cpus[number % len(cpus)] for number in range(count)], "--log-format", "json"
    ) as replicas:
        with LoadGenerator(address_of(replicas), {Kind.RAW: requests}, folder) as generator:
            per_s = min(MOST_PER_S, SHARE_OF_CAPACITY * generator.closed_loop(PROBE).calls_per_s)
            generator.start(OpenLoop.steady({Kind.RAW: per_s}))
            restarts = restart_in_turn(replicas, subject.effort)
            records = generator.finish().calls
        again = sum(earlier_attempts(start.log.read_text()) for replica in replicas for start in replica.starts)
    return describe(
        f"Rolling restart: {count} replicas behind client-side round robin, {per_s:.0f} calls a second",
        find(records, restarts, again, subject.effort.judged),
        f"{len(restarts)} restarts, one replica at a time: SIGTERM, drain, and a new process on the same port. "
        "The next one waits until this one is called again, as `minReadySeconds` has Kubernetes wait.",
        f"The load is at most {SHARE_OF_CAPACITY:.0%} of what all do at best, sent at a steady rate whatever comes "
        "back, through one channel with the options of `zfserve.Client`.",
        f"Calls: {tally(records)}.",
        "Tried again: calls that servers saw for a second time, by the channel's retry policy.",
    )


def describe(title: str, findings: Sequence[Finding], *notes: str) -> Report:
    return Report(title, "otherwise", "figure", tuple(findings), notes, measured="during a restart")


def restart_in_turn(replicas: Sequence[Replica], effort: Effort) -> list[Restart]:
    """Each of them, as often as there are rounds. Raises ServiceFailed."""
    return [_restart(replica, effort.round_s) for _ in range(effort.rounds) for replica in replicas]


def _restart(replica: Replica, pause_s: float) -> Restart:
    """Stop, start, wait until calls come again, and let all rest for a while. Raises ServiceFailed."""
    asked_s = time.monotonic()
    replica.stop()
    ended_s = time.monotonic()
    replica.start()
    ready_s = time.monotonic()
    while not replica.answered():
        if time.monotonic() - ready_s > CALLED_AGAIN_S:
            raise ServiceFailed(f"a restarted replica was not called within {CALLED_AGAIN_S:.0f} s")
        time.sleep(LOOK_EVERY_S)
    called_s = time.monotonic()
    time.sleep(pause_s)
    return Restart(asked_s, ended_s, ready_s, called_s)


def find(records: Sequence[Call], restarts: Sequence[Restart], again: int, judged: bool) -> list[Finding]:
    """What became of the calls, apart for those that began during a restart and those that did not.

    Args:
        again: calls that were tried again.
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
        ("to stop, longest", Quantity(max(each.ended_s - each.asked_s for each in restarts), "s")),
        ("to be ready again, longest", Quantity(max(each.ready_s - each.ended_s for each in restarts), "s")),
        ("to be called again then, longest", Quantity(max(each.called_s - each.ready_s for each in restarts), "s")),
    ):
        findings.append(Finding(name, seconds, None, seconds))
    return findings


def _counted(name: str, during: int, otherwise: int, limit: Limit | None = None) -> Finding:
    return Finding(name, Quantity(during), Quantity(otherwise), Quantity(during + otherwise), limit)


def percentile_ms(records: Sequence[Call], percent: int) -> float:
    """Of two calls or more, whatever became of them."""
    return statistics.quantiles([one.seconds * 1e3 for one in records], n=100)[percent - 1]


def earlier_attempts(log: str) -> int:
    """Calls in a server's log that gRPC's retries had made before."""
    calls = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    return sum("earlier_attempts" in call for call in calls)
