"""Benchmark `latency`: measures the time that the service adds to in-process inference, for one client."""

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

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images, raw_request
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, differences
from zfserve_bench.service.bare_server import bare_server
from zfserve_bench.services import classifying_service

MAX_ADDED = Limit("at most", 1.5)
"""The largest time that the service may add, in milliseconds."""

CALLS = 10
"""The number of calls in a block. There are several, because the first of a block meets cold caches."""

BLOCKS_A_ROUND = 2

WARM_UP = 256
"""The number of calls before the first block. The service keeps this many photos for a later `Project` call, and
allocates new memory for each of them."""

Classify: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"  # generic in the stubs only


def measure_latency(config: BenchmarkConfig) -> Report:
    findings = tuple(finding for precision in config.precisions for finding in _compare(config, precision))
    notes = (
        f"Blocks of {CALLS} calls and of {CALLS} in-process runs alternate, with the same engine settings. The figure "
        "is the median over blocks of the difference between a block's median and the medians around it.",
        "The bare server is grpc.aio with uvloop and one thread that runs the engine, and nothing else. It shows the "
        "least that gRPC costs in Python on this machine.",
    )
    title = "Latency: Classify with raw pixels, one client, beside in-process inference of one image"
    return Report(title, "in process", "added", findings, notes, measured="served")


def _compare(config: BenchmarkConfig, precision: Precision) -> tuple[Finding, Finding]:
    images = random_images(config.bundle.manifest.input)
    requests = [raw_request(image) for image in images]
    engine = OnnxEngine(config.bundle, precision, threads=config.threads, max_batch_size=1)
    folder = config.scratch(f"latency-{precision}")
    with (
        closing(engine),
        classifying_service(config, precision, folder) as service,
        bare_server(config, precision) as bare,
        grpc.insecure_channel(service.address) as channel,
        grpc.insecure_channel(bare) as bare_channel,
    ):
        servers = cycle([channel, bare_channel])
        for opened in (channel, bare_channel):
            warm_up: Classify = opened.unary_unary(CLASSIFY)
            for request in islice(cycle(requests), WARM_UP if config.effort.judged else 1):
                warm_up(request, timeout=10)

        def call() -> float:
            classify: Classify = next(servers).unary_unary(CLASSIFY)
            return _median_ms([partial(classify, request, timeout=10) for request in requests])

        in_process, served = alternate(
            lambda: _median_ms([partial(engine.run, image[None]) for image in images]),
            call,
            2 * BLOCKS_A_ROUND * config.effort.rounds,
        )
    added = differences(in_process, served)
    limit = MAX_ADDED if config.effort.judged else None

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
