"""Benchmark `overload`: offers four times the capacity of the service for a minute, with deadlines.

The service must answer in time every call that it accepts, and its goodput must stay near its capacity. Three senders
take turns: bare calls at the capacity itself, as a reference that is not judged; bare calls at four times the capacity;
and calls by zfserve's client.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zfserve_protos.metadata import Priority
from zfserve_runtime.bundle import InputSpec, Precision

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import jpeg_file, jpeg_requests
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import (
    LATE,
    OK,
    REFUSED,
    THROTTLED,
    Call,
    Kind,
    OpenLoop,
    OpenLoopResult,
    Sender,
    Stream,
)
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.services import classifying_service, usable_cpus

OVERLOAD = 4.0
"""The offered load over the capacity."""

CLIENTS = 32
"""The clients of the closed loop that measures the capacity."""

DEADLINE_IMAGES = 64
"""The deadline is the time that this many images take, a few of the largest batches, but at least 1 s."""

MIN_GOODPUT = 0.90
MIN_GOODPUT_INT8_ANY_CALLER = 0.85
"""INT8 answers up to three times as fast as fp32, so one refusal costs the time of more answers."""

MIN_KEPT = 0.99
MIN_BULK = 0.10
MIN_FAIRNESS = Limit("at least", 0.8)
MAX_REFUSAL_MS = 50.0

JPEG_QUALITY = 80

ANY_CALLER = "any caller"

SENDERS = (
    ("any caller, at the capacity", Sender.BARE, 1.0),
    (ANY_CALLER, Sender.BARE, OVERLOAD),
    ("zfserve's client", Sender.CLIENT, OVERLOAD),
)
"""Each sender's name, how it makes its calls, and its load over the capacity. The first is a
reference: it shows the share of the capacity that single calls reach. The closed loop that measures the capacity sends
calls in bursts as large as a batch."""

CLIENT_MIX: tuple[tuple[str, Priority, float], ...] = (
    ("greedy", "interactive", 0.5),
    ("modest-1", "interactive", 0.125),
    ("modest-2", "interactive", 0.125),
    ("archive", "bulk", 0.25),
)
"""Each client's identity, priority and share of the load. Under overload, each interactive client alone sends more than
its share of the engine."""


def measure_overload(config: BenchmarkConfig) -> Report:
    if not config.photos:
        return Report("Overload", "", "", (), ("skipped: no photos to send; name a folder with --photos",))
    findings: list[Finding] = []
    notes: list[str] = []
    service_cpus, load_cpus = split_cpus(usable_cpus())
    where = "on the same CPU" if service_cpus == load_cpus else f"on CPU {load_cpus[0]}, which the service does not use"
    for precision in config.precisions:
        for run in _runs(config, precision, service_cpus, load_cpus):
            result, name = run.result, f"{precision}, {run.sender}"
            if run.is_overload:
                least = min_goodput(precision, run.sender)
                findings += make_findings(name, run.capacity, result, least, judged=config.effort.judged)
            else:
                findings.append(goodput(name, run.capacity, result))
            throttled = sum(call.status == THROTTLED for call in result.calls)
            notes.append(
                f"{name}: {len(result.calls) / result.seconds:.0f} calls/s offered for {result.seconds:.0f} s with "
                f"deadlines of {run.deadline_s:.1f} s; the client held back {throttled:,} of {len(result.calls):,}; "
                f"the load generator took {result.cpu_s / len(result.calls) * 1e3:.2f} ms of CPU time each, {where}."
            )
    return Report(
        f"Overload: {OVERLOAD:.0f} times the capacity, by four clients, one of them greedy and one of bulk",
        "capacity, or the most",
        "figure",
        tuple(findings),
        tuple(notes),
    )


class Run(NamedTuple):
    """Holds one run of a sender.

    Attributes:
        sender: its name.
        is_overload: True if it offered more than the capacity.
        capacity: images per second of the service on its own CPUs: the mean of just before and just after the run,
            because the speed of the machine drifts.
    """

    sender: str
    is_overload: bool
    capacity: float
    deadline_s: float
    result: OpenLoopResult


def _runs(
    config: BenchmarkConfig, precision: Precision, service_cpus: Sequence[int], load_cpus: Sequence[int]
) -> Iterator[Run]:
    """Runs the same mix of clients with each of `SENDERS`."""
    spec, effort = config.bundle.manifest.input, config.effort
    requests, folder = {Kind.JPEG: photo_requests(config, spec)}, config.scratch(f"overload-{precision}")
    with (
        classifying_service(config, precision, folder, service_cpus) as service,
        LoadGenerator(service.address, requests, folder, load_cpus) as generator,
    ):
        saturation = generator.saturating_loop(Kind.JPEG, CLIENTS, effort.round_s * effort.rounds)
        before = generator.closed_loop(saturation).calls_per_s
        for name, sender, times in SENDERS:
            deadline_s = max(1.0, DEADLINE_IMAGES / before)
            streams = tuple(
                Stream(client, Kind.JPEG, share * times * before, priority) for client, priority, share in CLIENT_MIX
            )
            load = OpenLoop(streams, sender, random_arrivals=True, deadline_s=deadline_s)
            result = generator.open_loop(load, config.overload_s)
            after = generator.closed_loop(saturation).calls_per_s
            yield Run(name, times > 1, (before + after) / 2, deadline_s, result)
            before = after


def split_cpus(cpus: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Returns the CPUs of the service and those of the load generator, which gets the last one if there are several.

    Real clients run on other machines. The benchmark measures what the service spends on refusals, not what the load
    generator takes from its CPUs.
    """
    return (cpus[:-1], cpus[-1:]) if len(cpus) > 1 else (cpus, cpus)


def photo_requests(config: BenchmarkConfig, spec: InputSpec) -> list[bytes]:
    """Returns requests with JPEG files of the network's input size. Clients that know the network send small files."""
    files = [jpeg_file(photo, spec.width, spec.height, JPEG_QUALITY) for photo in config.photos]
    return jpeg_requests(files)


def min_goodput(precision: Precision, sender: str) -> float:
    """Returns the least goodput over capacity that `sender` must get."""
    return MIN_GOODPUT_INT8_ANY_CALLER if (precision, sender) == ("int8", ANY_CALLER) else MIN_GOODPUT


def make_findings(
    name: str, capacity: float, result: OpenLoopResult, least: float = MIN_GOODPUT, *, judged: bool = True
) -> list[Finding]:
    """Returns the findings on an overloaded service, as its clients see it.

    Args:
        capacity: images per second.
        least: the least goodput over capacity.
        judged: False to leave out the limits.
    """
    by_status = Counter(call.status for call in result.calls)
    answered = Counter(call.stream for call in result.calls if call.status == OK)
    interactive = [answered[client] / result.seconds for client in _clients("interactive")]
    bulk = sum(answered[client] for client in _clients("bulk"))
    refusals = sorted(call.seconds for call in result.calls if call.status == REFUSED)

    def finding(
        what: str, measured: Quantity, limit: Limit | None = None, reference: Quantity | None = None
    ) -> Finding:
        return _finding(f"{name}, {what}", measured, reference, limit if judged else None)

    kept = by_status[OK] / max(1, by_status[OK] + by_status[LATE])
    return [
        goodput(name, capacity, result, Limit("at least", least) if judged else None),
        finding("accepted calls that met their deadline", Quantity(kept), Limit("at least", MIN_KEPT)),
        finding("the least-served of three clients", _rate(min(interactive)), MIN_FAIRNESS, _rate(max(interactive))),
        finding("share of bulk in the answers", Quantity(bulk / max(1, by_status[OK])), Limit("at least", MIN_BULK)),
        finding("neither answered, refused nor late", Quantity(_others(by_status), "calls"), Limit("at most", 0)),
        finding("refusal, median", _percentile(refusals, 0.5), Limit("at most", MAX_REFUSAL_MS)),
        finding("refusal, 99 %", _percentile(refusals, 0.99)),
        finding("answer, interactive, median", _latency(result.calls, "interactive")),
        finding("answer, bulk, median", _latency(result.calls, "bulk")),
    ]


def goodput(name: str, capacity: float, result: OpenLoopResult, limit: Limit | None = None) -> Finding:
    """Returns the rate of images answered in time over the capacity. Answers after the end of the load do not count."""
    ended_s = result.began_s + result.seconds
    in_time = [call for call in result.calls if call.status == OK and call.began_s + call.seconds <= ended_s]
    return _finding(f"{name}, goodput", _rate(len(in_time) / result.seconds), _rate(capacity), limit)


def _finding(name: str, measured: Quantity, reference: Quantity | None, limit: Limit | None) -> Finding:
    figure = measured if reference is None else Quantity(measured.value / max(reference.value, 1e-9))
    return Finding(name, measured, reference, figure, limit)


def _clients(priority: str) -> list[str]:
    return [client for client, wanted, _ in CLIENT_MIX if wanted == priority]


def _rate(value: float) -> Quantity:
    return Quantity(value, "images/s")


def _percentile(ordered: Sequence[float], share: float) -> Quantity:
    return Quantity(ordered[int(share * len(ordered))] * 1e3 if ordered else float("nan"), "ms")


def _latency(calls: Sequence[Call], priority: str) -> Quantity:
    clients = _clients(priority)
    return _percentile(sorted(call.seconds for call in calls if call.status == OK and call.stream in clients), 0.5)


def _others(by_status: Counter[str]) -> int:
    return sum(count for status, count in by_status.items() if status not in (OK, REFUSED, LATE, THROTTLED))
