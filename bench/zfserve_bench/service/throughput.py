"""Benchmark `throughput`: compares the images per second of the service with those of ONNX Runtime in process."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from zfserve_runtime.bundle import Precision

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images, raw_request
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import ClosedLoopResult, Kind
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, median_ratio
from zfserve_bench.service.in_process import InProcess, fastest_in_process
from zfserve_bench.services import classifying_service

MIN_SHARE: dict[tuple[Precision, int], float] = {
    ("fp32", 32): 0.92,
    ("fp32", 8): 0.85,
    ("int8", 32): 0.85,
    ("int8", 8): 0.75,
}
"""The least throughput over that of the baseline, by precision and number of clients."""

CLIENTS = (32, 8)


def measure_throughput(config: BenchmarkConfig) -> Report:
    findings: list[Finding] = []
    notes = [
        "The load generator runs on the same cores. It sends bytes made beforehand and does not parse the answers, "
        "because clients on other machines would cost this machine nothing."
    ]
    images = random_images(config.bundle.manifest.input)
    requests = [raw_request(image) for image in images]
    for precision in config.precisions:
        with (
            fastest_in_process(config, precision, images) as in_process,
            loaded_service(config, precision, requests) as generator,
        ):
            notes.append(f"{precision}: in process {in_process.describe()}.")
            for clients in CLIENTS:
                finding, cost_ms = _compare(config, precision, clients, generator, in_process)
                findings.append(finding)
                notes.append(f"{finding.name}: the load generator took {cost_ms:.2f} ms of CPU time per call.")
    return Report(
        "Throughput: Classify with raw pixels at saturation, beside in-process ONNX Runtime at its best batch size",
        "in process",
        "share",
        tuple(findings),
        tuple(notes),
    )


@contextmanager
def loaded_service(config: BenchmarkConfig, precision: Precision, requests: list[bytes]) -> Iterator[LoadGenerator]:
    """Runs a service of one precision without a worker, and a load generator for it, until the block ends."""
    folder = config.scratch(f"throughput-{precision}")
    with (
        classifying_service(config, precision, folder) as service,
        LoadGenerator(service.address, {Kind.RAW: requests}, folder) as generator,
    ):
        yield generator


def _compare(
    config: BenchmarkConfig, precision: Precision, clients: int, generator: LoadGenerator, in_process: InProcess
) -> tuple[Finding, float]:
    """Returns the finding, and the CPU time of the load generator in milliseconds for each call."""
    effort = config.effort
    loads: list[ClosedLoopResult] = []
    order = generator.saturating_loop(Kind.RAW, clients, effort.round_s)

    def served_per_s() -> float:
        loads.append(generator.closed_loop(order))
        return loads[-1].calls_per_s

    baselines, served = alternate(lambda: in_process.images_per_s(effort.round_s), served_per_s, effort.rounds)
    finding = Finding(
        f"{precision}, {clients} clients",
        Quantity(statistics.median(served), "images/s"),
        Quantity(statistics.median(baselines), "images/s"),
        Quantity(median_ratio(baselines, served)),
        Limit("at least", MIN_SHARE[precision, clients]) if effort.judged else None,
    )
    return finding, statistics.median(load.cpu_s / load.calls for load in loads) * 1e3
