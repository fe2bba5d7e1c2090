"""Latency: what one lonely client waits longer than a caller in the same process would."""

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TypeAlias

import grpc
from zfserve_runtime.bundle import Precision
from zfserve_runtime.onnx_engine import OnnxEngine

from zfserve_bench.findings import Finding, Limit, Quantity, Report
from zfserve_bench.load import METHOD
from zfserve_bench.rounds import alternate, median_difference
from zfserve_bench.subject import Subject, classifying_service, noise, raw_request

MOST_ADDED = Limit("at most", 1.5)
"""Milliseconds."""

CALLS = 10
"""In a block: a few in a row, as each first one meets cold caches."""

BLOCKS_A_ROUND = 2

Classify: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"  # generic in the stubs only


def measure_latency(subject: Subject) -> Report:
    findings = tuple(_compare(subject, precision) for precision in subject.precisions)
    note = (
        f"Blocks of {CALLS} calls and {CALLS} in-process runs take turns, on the same engine with the same settings; "
        "the figure is the median over blocks of the difference between the blocks' medians."
    )
    title = "Latency: Classify with raw pixels, one client, beside in-process inference of one image"
    return Report(title, "in process", "added", findings, (note,))


def _compare(subject: Subject, precision: Precision) -> Finding:
    images = noise(subject.bundle.manifest.input)
    requests = [raw_request(image) for image in images]
    engine = OnnxEngine(subject.bundle, precision, threads=subject.threads, max_batch_size=1)
    folder = subject.scratch(f"latency-{precision}")
    with (
        closing(engine),
        classifying_service(subject, precision, folder) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        classify: Classify = channel.unary_unary(METHOD)
        blocks = subject.effort.rounds * BLOCKS_A_ROUND
        in_process, served = alternate(
            lambda: _median_ms([partial(engine.run, image[None]) for image in images]),
            lambda: _median_ms([partial(classify, request, timeout=10) for request in requests]),
            blocks,
        )
    return Finding(
        f"{precision}, median",
        Quantity(statistics.median(served), "ms"),
        Quantity(statistics.median(in_process), "ms"),
        Quantity(median_difference(in_process, served), "ms"),
        MOST_ADDED if subject.effort.judged else None,
    )


def _median_ms(calls: list[Callable[[], object]]) -> float:
    durations = []
    for index in range(CALLS):
        began = time.perf_counter()
        calls[index % len(calls)]()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations) * 1e3
