"""Latency: what one lonely client waits longer than a caller in the same process would."""

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import cycle, islice
from typing import TypeAlias

import grpc
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_protos.methods import CLASSIFY
from zfserve_runtime.bundle import Precision

from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, differences
from zfserve_bench.service.bare_server import bare_server
from zfserve_bench.subject import Subject, classifying_service, noise, raw_request

MOST_ADDED = Limit("at most", 1.5)
"""Milliseconds."""

CALLS = 10
"""In a block: a few in a row, as each first one meets cold caches."""

BLOCKS_A_ROUND = 2

WARM_UP = 256
"""Calls before the first block: the service keeps so many photos for a later Project, and until then takes new memory
for each."""

Classify: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"  # generic in the stubs only


def measure_latency(subject: Subject) -> Report:
    findings = tuple(finding for precision in subject.precisions for finding in _compare(subject, precision))
    notes = (
        f"Blocks of {CALLS} calls and {CALLS} in-process runs take turns, on the same engine with the same settings; "
        "the figure is the median over blocks of the difference between a block's median and those around it.",
        "The bare server is grpc.aio with uvloop around one thread that runs the engine, and nothing else: the least "
        "that gRPC costs in Python on this machine.",
    )
    title = "Latency: Classify with raw pixels, one client, beside in-process inference of one image"
    return Report(title, "in process", "added", findings, notes, measured="served")


def _compare(subject: Subject, precision: Precision) -> tuple[Finding, Finding]:
    images = noise(subject.bundle.manifest.input)
    requests = [raw_request(image) for image in images]
    engine = OnnxEngine(subject.bundle, precision, threads=subject.threads, max_batch_size=1)
    folder = subject.scratch(f"latency-{precision}")
    with (
        closing(engine),
        classifying_service(subject, precision, folder) as service,
        bare_server(subject, precision) as bare,
        grpc.insecure_channel(service.address) as channel,
        grpc.insecure_channel(bare) as bare_channel,
    ):
        servers = cycle([channel, bare_channel])
        for each in (channel, bare_channel):
            warming: Classify = each.unary_unary(CLASSIFY)
            for request in islice(cycle(requests), WARM_UP if subject.effort.judged else 1):
                warming(request, timeout=10)

        def call() -> float:
            classify: Classify = next(servers).unary_unary(CLASSIFY)
            return _median_ms([partial(classify, request, timeout=10) for request in requests])

        in_process, served = alternate(
            lambda: _median_ms([partial(engine.run, image[None]) for image in images]),
            call,
            2 * BLOCKS_A_ROUND * subject.effort.rounds,
        )
    added = differences(in_process, served)
    limit = MOST_ADDED if subject.effort.judged else None

    def finding(name: str, first: int, limit: Limit | None) -> Finding:
        figures = served[first::2], in_process, added[first::2]
        measured, reference, figure = (Quantity(statistics.median(values), "ms") for values in figures)
        return Finding(f"{precision}, {name}, median", measured, reference, figure, limit)

    return finding("zfserve", 0, limit), finding("a bare server", 1, None)


def _median_ms(calls: list[Callable[[], object]]) -> float:
    durations = []
    for index in range(CALLS):
        began = time.perf_counter()
        calls[index % len(calls)]()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations) * 1e3
