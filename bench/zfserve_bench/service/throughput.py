"""Throughput: images a second through the whole service, as a share of what ONNX Runtime does by itself."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from zfserve_runtime.bundle import Precision

from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import ClosedLoop, ClosedLoopResult, Kind
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, median_ratio
from zfserve_bench.service.in_process import InProcess, best_in_process
from zfserve_bench.subject import Subject, classifying_service, noise, raw_request

LEAST_SHARE: dict[tuple[Precision, int], float] = {
    ("fp32", 32): 0.92,
    ("fp32", 8): 0.85,
    ("int8", 32): 0.85,
    ("int8", 8): 0.75,
}
"""By precision and number of clients."""

CLIENTS = (32, 8)

BURST = 32
"""Calls are counted in multiples of this, and so in whole batches of any size that divides it."""


def measure_throughput(subject: Subject) -> Report:
    findings: list[Finding] = []
    notes = [
        "The load generator runs on the same cores. It sends bytes made beforehand and does not read the answers: "
        "clients on machines of their own would cost this one nothing."
    ]
    images = noise(subject.bundle.manifest.input)
    requests = [raw_request(image) for image in images]
    for precision in subject.precisions:
        with (
            best_in_process(subject, precision, images) as in_process,
            loaded_service(subject, precision, requests) as generator,
        ):
            notes.append(f"{precision}: in process {in_process.describe()}.")
            for clients in CLIENTS:
                finding, cost_ms = _compare(subject, precision, clients, generator, in_process)
                findings.append(finding)
                notes.append(f"{finding.name}: the load generator took {cost_ms:.2f} ms of CPU time a call.")
    return Report(
        "Throughput: Classify with raw pixels at saturation, beside in-process ONNX Runtime at its best batch size",
        "in process",
        "share",
        tuple(findings),
        tuple(notes),
    )


@contextmanager
def loaded_service(subject: Subject, precision: Precision, requests: list[bytes]) -> Iterator[LoadGenerator]:
    """A service of that precision without a worker, and a load generator pointed at it."""
    folder = subject.scratch(f"throughput-{precision}")
    with (
        classifying_service(subject, precision, folder) as service,
        LoadGenerator(service.address, {Kind.RAW: requests}, folder) as generator,
    ):
        yield generator


def _compare(
    subject: Subject, precision: Precision, clients: int, generator: LoadGenerator, in_process: InProcess
) -> tuple[Finding, float]:
    """And the load generator's own cost: milliseconds of CPU time a call."""
    effort = subject.effort
    loads: list[ClosedLoopResult] = []
    guess = generator.closed_loop(ClosedLoop(Kind.RAW, clients, warm_up=clients, calls=BURST)).calls_per_s
    order = ClosedLoop(Kind.RAW, clients, warm_up=2 * clients, calls=whole_bursts(guess * effort.round_s))

    def served_per_s() -> float:
        loads.append(generator.closed_loop(order))
        return loads[-1].calls_per_s

    baselines, served = alternate(lambda: in_process.images_per_s(effort.round_s), served_per_s, effort.rounds)
    finding = Finding(
        f"{precision}, {clients} clients",
        Quantity(statistics.median(served), "images/s"),
        Quantity(statistics.median(baselines), "images/s"),
        Quantity(median_ratio(baselines, served)),
        Limit("at least", LEAST_SHARE[precision, clients]) if effort.judged else None,
    )
    return finding, statistics.median(load.cpu_s / load.calls for load in loads) * 1e3


def whole_bursts(calls: float) -> int:
    """The nearest multiple of `BURST`, at least one."""
    return max(1, round(calls / BURST)) * BURST
