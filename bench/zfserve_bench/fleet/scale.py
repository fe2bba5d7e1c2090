"""Scale: how throughput grows with replicas behind client-side round robin, each on a CPU of its own."""

import statistics
from contextlib import ExitStack

from zfserve_runtime.bundle import Precision

from zfserve_bench.fleet.pinned_engine import BATCH, PinnedEngine, images_per_s
from zfserve_bench.fleet.replicas import Replica, address_of, running_fleet
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import ClosedLoop, Kind
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, median_ratio
from zfserve_bench.service.throughput import whole_bursts
from zfserve_bench.subject import Subject, available, noise, raw_request

LEAST_SHARE: dict[Precision, Limit] = {"fp32": Limit("at least", 0.85), "int8": Limit("at least", 0.75)}
"""Of what so many engines do on the same CPUs without a service."""

CLIENTS_A_REPLICA = 2 * BATCH
"""One batch in the engine, and the next one waiting."""


def measure_scale(subject: Subject) -> Report:
    findings = [finding for precision in subject.precisions for finding in _measure(subject, precision)]
    notes = (
        "Each replica is a process with one engine thread on a CPU of its own; two CPUs may be one core's. One client "
        "process goes round robin over all of them, on the same CPUs.",
        f"Engines alone: as many processes on the same CPUs, batches of {BATCH} that are in memory.",
        "Times one: throughput over that of one replica; per replica: that over their number.",
        "Least share: of all calls, what the replica with fewest answered, times the number of replicas; 1 is even.",
    )
    return Report(
        "Scale: Classify with raw pixels at saturation, replicas behind client-side round robin",
        "engines alone",
        "share",
        tuple(findings),
        notes,
        measured="images/s",
        details=("times one", "per replica", "least share"),
    )


def _measure(subject: Subject, precision: Precision) -> list[Finding]:
    cpus = available()
    requests = [raw_request(image) for image in noise(subject.bundle.manifest.input)]
    findings: list[Finding] = []
    with ExitStack() as stack:
        fleet = stack.enter_context(running_fleet(subject, f"scale-{precision}", cpus, "--precision", precision))
        engines = [stack.enter_context(PinnedEngine(subject.bundle, precision, cpu)) for cpu in cpus]
        for count in range(1, len(cpus) + 1):
            folder = subject.scratch(f"scale-{precision}-load-{count}")
            with LoadGenerator(address_of(fleet[:count]), {Kind.RAW: requests}, folder) as generator:
                findings.append(_compare(subject, precision, fleet[:count], engines[:count], generator, findings))
    return findings


def _compare(
    subject: Subject,
    precision: Precision,
    replicas: list[Replica],
    engines: list[PinnedEngine],
    generator: LoadGenerator,
    so_far: list[Finding],
) -> Finding:
    """`so_far` begins with the finding on one replica, where this is not it."""
    effort, count = subject.effort, len(replicas)
    clients = CLIENTS_A_REPLICA * count
    guess = generator.closed_loop(ClosedLoop(Kind.RAW, clients, warm_up=clients, calls=clients)).calls_per_s
    order = ClosedLoop(Kind.RAW, clients, warm_up=2 * clients, calls=whole_bursts(guess * effort.round_s))
    before = [replica.answered() for replica in replicas]
    alone, served = alternate(
        lambda: images_per_s(engines, effort.round_s),
        lambda: generator.closed_loop(order).calls_per_s,
        effort.rounds,
    )
    answered = [replica.answered() - earlier for replica, earlier in zip(replicas, before, strict=True)]
    images = statistics.median(served)
    times_one = images / (so_far[0].measured.value if so_far else images)
    return Finding(
        f"{precision}, {count} replica{'s'[: count > 1]}",
        Quantity(images),
        Quantity(statistics.median(alone)),
        Quantity(median_ratio(alone, served)),
        LEAST_SHARE[precision] if effort.judged else None,
        (Quantity(times_one), Quantity(times_one / count), Quantity(least_share(answered))),
    )


def least_share(answered: list[float]) -> float:
    """Of all calls, what the replica with the fewest answered, times the number of replicas: in [0, 1], 1 is even."""
    return min(answered) * len(answered) / sum(answered)
