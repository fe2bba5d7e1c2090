"""Overload: four times what the service can do, for a minute, with deadlines. What it takes on it must do in time, and
it must do as much as without the crowd. Once by callers of any kind, and once by zfserve's own client; and before that
once what it can do, by callers of any kind."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zfserve_protos.metadata import Priority
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import InputSpec, Precision

from zfserve_bench.load.closed_loop import LoadGenerator, Order
from zfserve_bench.load.open_loop import KEPT_BACK, LATE, OK, REFUSED, Call, Offer, Offered, Stream, offer
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.service.throughput import whole_bursts
from zfserve_bench.subject import Subject, available, classifying_service, jpeg

TIMES = 4.0
"""Offered, over what the service can do."""

CLIENTS = 32
"""Of the closed loop that measures what it can do."""

DEADLINE_IMAGES = 64
"""The deadline is what so many images take, but at least a second: a few of the largest batches."""

LEAST_GOODPUT = 0.90
LEAST_GOODPUT_INT8_ANY_CALLER = 0.85
"""INT8 answers up to three times as fast as fp32, so each refusal takes the time of more answers."""

LEAST_KEPT = 0.99
LEAST_BULK = 0.10
LEAST_OF_MOST = Limit("at least", 0.8)
LONGEST_REFUSAL_MS = 50.0

JPEG_QUALITY = 80

ANY_CALLER = "any caller"

SENDERS = (("any caller, one time", False, 1.0), (ANY_CALLER, False, TIMES), ("zfserve's client", True, TIMES))
"""By what a crowd's calls are made, whether that keeps part of them back, as `Client` does, and how many times what the
service can do it offers. The first tells what calls that come one by one can get of a capacity that is measured in a
closed loop, where they come by the batch."""

CROWD: tuple[tuple[str, Priority, float], ...] = (
    ("greedy", "interactive", 0.5),
    ("modest-1", "interactive", 0.125),
    ("modest-2", "interactive", 0.125),
    ("archive", "bulk", 0.25),
)
"""Who sends, how urgent, and which share of the load: each interactive client alone sends more than its share of the
engine."""


def measure_overload(subject: Subject) -> Report:
    if not subject.photos:
        return Report("Overload", "", "", (), ("skipped: no photos to send; name a folder with --photos",))
    findings: list[Finding] = []
    notes: list[str] = []
    own, generators = share_out(available())
    where = "on the same CPU" if own == generators else f"on CPU {generators[0]}, which the service leaves to it"
    for precision in subject.precisions:
        for crowd in _overload(subject, precision, own, generators):
            offered, name = crowd.offered, f"{precision}, {crowd.sender}"
            if crowd.is_overload:
                least = least_goodput(precision, crowd.sender)
                findings += find(name, crowd.capacity, offered, least, judged=subject.effort.judged)
            else:
                findings.append(goodput(name, crowd.capacity, offered))
            kept_back = sum(call.status == KEPT_BACK for call in offered.calls)
            notes.append(
                f"{precision}, {crowd.sender}: {len(offered.calls) / offered.seconds:.0f} calls/s offered for "
                f"{offered.seconds:.0f} s with deadlines of {crowd.deadline_s:.1f} s, {kept_back:,} of "
                f"{len(offered.calls):,} kept back by the client; the load generator took "
                f"{offered.cpu_s / len(offered.calls) * 1e3:.2f} ms of CPU time a call, {where}."
            )
    return Report(
        f"Overload: {TIMES:.0f} times what the service can do, by four clients, one of them greedy and one of bulk",
        "without the crowd, or the most",
        "figure",
        tuple(findings),
        tuple(notes),
    )


class Crowd(NamedTuple):
    """What became of one.

    Attributes:
        sender: by what its calls were made.
        is_overload: whether it offered more than the service can do.
        capacity: of the service on its own CPUs, in images a second: the mean of before the crowd and after it, as the
            machine's own pace changes meanwhile.
    """

    sender: str
    is_overload: bool
    capacity: float
    deadline_s: float
    offered: Offered


def _overload(subject: Subject, precision: Precision, own: Sequence[int], generators: Sequence[int]) -> Iterator[Crowd]:
    """The same crowd by each of `SENDERS`."""
    spec, effort = subject.bundle.manifest.input, subject.effort
    requests, folder = photo_requests(subject, spec), subject.scratch(f"overload-{precision}")
    with (
        classifying_service(subject, precision, folder, own) as service,
        LoadGenerator(service.address, requests, folder, generators) as generator,
    ):
        guess = generator.measure(Order(CLIENTS, warm_up=CLIENTS, calls=CLIENTS)).calls_per_s
        order = Order(CLIENTS, warm_up=CLIENTS, calls=whole_bursts(guess * effort.round_s * effort.rounds))
        before = generator.measure(order).calls_per_s
        for sender, own_client, times in SENDERS:
            deadline_s = max(1.0, DEADLINE_IMAGES / before)
            streams = tuple(Stream(client, priority, share * times * before) for client, priority, share in CROWD)
            crowd = Offer(streams, subject.overload_s, deadline_s, own_client)
            offered = offer(service.address, requests, folder, crowd, generators)
            after = generator.measure(order).calls_per_s
            yield Crowd(sender, times > 1, (before + after) / 2, deadline_s, offered)
            before = after


def share_out(cpus: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """CPUs of the service, and those of the load generator: the last one, where there are several.

    A crowd runs on machines of its own. What it takes of the service's is not what is measured here; what the service
    itself takes to refuse it is.
    """
    return (cpus[:-1], cpus[-1:]) if len(cpus) > 1 else (cpus, cpus)


def photo_requests(subject: Subject, spec: InputSpec) -> list[bytes]:
    """JPEG files of the input's size, as clients send them that think of the network: what is refused is small."""
    files = [jpeg(photo, spec.width, spec.height, JPEG_QUALITY) for photo in subject.photos]
    return [pb.ClassifyRequest(image=pb.Image(encoded=file)).SerializeToString() for file in files]


def least_goodput(precision: Precision, sender: str) -> float:
    """Returns the least goodput over capacity that `sender` must get."""
    return LEAST_GOODPUT_INT8_ANY_CALLER if (precision, sender) == ("int8", ANY_CALLER) else LEAST_GOODPUT


def find(
    name: str, capacity: float, offered: Offered, least: float = LEAST_GOODPUT, *, judged: bool = True
) -> list[Finding]:
    """What is asked of an overloaded service, and what its clients see of it."""
    by_status = Counter(call.status for call in offered.calls)
    answered = Counter(call.client for call in offered.calls if call.status == OK)
    interactive = [answered[client] / offered.seconds for client in _clients("interactive")]
    bulk = sum(answered[client] for client in _clients("bulk"))
    refusals = sorted(call.seconds for call in offered.calls if call.status == REFUSED)

    def finding(
        what: str, measured: Quantity, limit: Limit | None = None, reference: Quantity | None = None
    ) -> Finding:
        return _finding(f"{name}, {what}", measured, reference, limit if judged else None)

    kept = by_status[OK] / max(1, by_status[OK] + by_status[LATE])
    return [
        goodput(name, capacity, offered, Limit("at least", least) if judged else None),
        finding("accepted that kept their deadline", Quantity(kept), Limit("at least", LEAST_KEPT)),
        finding("the least of three clients", _rate(min(interactive)), LEAST_OF_MOST, _rate(max(interactive))),
        finding("bulk among the answered", Quantity(bulk / max(1, by_status[OK])), Limit("at least", LEAST_BULK)),
        finding("neither answered, refused nor late", Quantity(_others(by_status), "calls"), Limit("at most", 0)),
        finding("refusal, median", _percentile(refusals, 0.5), Limit("at most", LONGEST_REFUSAL_MS)),
        finding("refusal, 99 %", _percentile(refusals, 0.99)),
        finding("answer, interactive, median", _latency(offered.calls, "interactive")),
        finding("answer, bulk, median", _latency(offered.calls, "bulk")),
    ]


def goodput(name: str, capacity: float, offered: Offered, limit: Limit | None = None) -> Finding:
    """Images answered in time, over the capacity; not those that were answered when the crowd had gone."""
    in_time = [call for call in offered.calls if call.status == OK and call.began_s + call.seconds <= offered.seconds]
    return _finding(f"{name}, goodput", _rate(len(in_time) / offered.seconds), _rate(capacity), limit)


def _finding(name: str, measured: Quantity, reference: Quantity | None, limit: Limit | None) -> Finding:
    figure = measured if reference is None else Quantity(measured.value / max(reference.value, 1e-9))
    return Finding(name, measured, reference, figure, limit)


def _clients(priority: str) -> list[str]:
    return [client for client, wanted, _ in CROWD if wanted == priority]


def _rate(value: float) -> Quantity:
    return Quantity(value, "images/s")


def _percentile(ordered: Sequence[float], share: float) -> Quantity:
    return Quantity(ordered[int(share * len(ordered))] * 1e3 if ordered else float("nan"), "ms")


def _latency(calls: Sequence[Call], priority: str) -> Quantity:
    clients = _clients(priority)
    return _percentile(sorted(call.seconds for call in calls if call.status == OK and call.client in clients), 0.5)


def _others(by_status: Counter[str]) -> int:
    return sum(count for status, count in by_status.items() if status not in (OK, REFUSED, LATE, KEPT_BACK))
