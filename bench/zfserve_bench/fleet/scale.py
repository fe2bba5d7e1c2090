"""Benchmark `scale`: measures throughput by number of replicas behind client-side round robin, each on its own CPU."""

import statistics
from contextlib import ExitStack

from zfserve_runtime.bundle import Precision

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.fleet.pinned_engine import BATCH, PinnedEngine, images_per_s
from zfserve_bench.fleet.replicas import Replica, address_of, running_fleet
from zfserve_bench.inputs import random_images, raw_request
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import Kind
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, median_ratio
from zfserve_bench.services import usable_cpus

MIN_SHARE: dict[Precision, Limit] = {"fp32": Limit("at least", 0.85), "int8": Limit("at least", 0.75)}
"""The least throughput of replicas, over that of the same number of engines on the same CPUs without a service."""

CLIENTS_PER_REPLICA = 2 * BATCH
"""One batch in the engine, and the next one in the queue."""


def measure_scale(config: BenchmarkConfig) -> Report:
    findings = [finding for precision in config.precisions for finding in _measure(config, precision)]
    notes = (
        "Each replica is a process with one engine thread on its own CPU; two CPUs may belong to one core. One load "
        "process on the same CPUs calls all replicas round robin.",
        f"Engines alone: as many processes on the same CPUs, which run batches of {BATCH} from memory.",
        "Times one: throughput over that of one replica. Per replica: the same over the number of replicas.",
        "Least share: the share of calls of the least used replica, times the number of replicas; 1 is even.",
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


def _measure(config: BenchmarkConfig, precision: Precision) -> list[Finding]:
    cpus = usable_cpus()
    requests = [raw_request(image) for image in random_images(config.bundle.manifest.input)]
    findings: list[Finding] = []
    with ExitStack() as stack:
        fleet = stack.enter_context(running_fleet(config, f"scale-{precision}", cpus, "--precision", precision))
        engines = [stack.enter_context(PinnedEngine(config.bundle, precision, cpu)) for cpu in cpus]
        for count in range(1, len(cpus) + 1):
            folder = config.scratch(f"scale-{precision}-load-{count}")
            with LoadGenerator(address_of(fleet[:count]), {Kind.RAW: requests}, folder) as generator:
                findings.append(_compare(config, precision, fleet[:count], engines[:count], generator, findings))
    return findings


def _compare(
    config: BenchmarkConfig,
    precision: Precision,
    replicas: list[Replica],
    engines: list[PinnedEngine],
    generator: LoadGenerator,
    earlier: list[Finding],
) -> Finding:
    """Compares replicas with as many engines.

    Args:
        earlier: the findings on fewer replicas, the one on one replica first.
    """
    effort, count = config.effort, len(replicas)
    clients = CLIENTS_PER_REPLICA * count
    order = generator.saturating_loop(Kind.RAW, clients, effort.round_s)
    answered_before = [replica.answered() for replica in replicas]
    alone, served = alternate(
        lambda: images_per_s(engines, effort.round_s),
        lambda: generator.closed_loop(order).calls_per_s,
        effort.rounds,
    )
    answered = [replica.answered() - count for replica, count in zip(replicas, answered_before, strict=True)]
    images = statistics.median(served)
    times_one = images / (earlier[0].measured.value if earlier else images)
    return Finding(
        f"{precision}, {count} replica{'s'[: count > 1]}",
        Quantity(images),
        Quantity(statistics.median(alone)),
        Quantity(median_ratio(alone, served)),
        MIN_SHARE[precision] if effort.judged else None,
        (Quantity(times_one), Quantity(times_one / count), Quantity(evenness(answered))),
    )


def evenness(answered: list[float]) -> float:
    """Returns the share of calls that the least used replica answered, times their number: in [0, 1]; 1 is even."""
    return min(answered) * len(answered) / sum(answered)
