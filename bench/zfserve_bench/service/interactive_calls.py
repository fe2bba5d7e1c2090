"""Measures interactive `Classify` calls alone and beside other work of the same service. `occlusion` uses it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import grpc
import numpy as np
from zfserve_protos.methods import CLASSIFY

PAUSE_S = 0.02
"""The pause between two calls. They come while the last bulk batch still runs."""

CALLS_A_BLOCK = 50


class InteractiveCalls(NamedTuple):
    """Holds the durations of calls in milliseconds, alone and beside the work."""

    alone_ms: list[float]
    beside_ms: list[float]

    def percentiles(self, percent: float) -> tuple[float, float]:
        """Returns the percentile of both."""
        return float(np.percentile(self.alone_ms, percent)), float(np.percentile(self.beside_ms, percent))


def measure_calls(
    channel: grpc.Channel, requests: Sequence[bytes], work: Callable[[], object], blocks: int, calls: int
) -> InteractiveCalls:
    """Measures the calls of one client, one after the other. Blocks alone and beside the work take turns.

    Machines vary, and a busy one varies more. So both sides must meet the same disturbances.

    Args:
        channel: a channel to the service.
        requests: `Classify` requests, sent in turn.
        work: other work for the service. While a block runs beside it, it is repeated in a thread.
        blocks: the number of blocks of each side.
        calls: the number of calls in a block.
    """
    measured = InteractiveCalls([], [])
    _block(channel, requests, calls)  # warm-up
    for _ in range(blocks):
        measured.alone_ms.extend(_block(channel, requests, calls))
        with _repeated(work):
            measured.beside_ms.extend(_block(channel, requests, calls))
    return measured


def _block(channel: grpc.Channel, requests: Sequence[bytes], calls: int) -> list[float]:
    classify: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY)
    durations = []
    for number in range(calls):
        began = time.perf_counter()
        classify(requests[number % len(requests)], timeout=10)
        durations.append((time.perf_counter() - began) * 1e3)
        time.sleep(PAUSE_S)
    return durations


@contextmanager
def _repeated(work: Callable[[], object]) -> Iterator[None]:
    """Repeats `work` in a thread until the block ends, and at least once."""
    ended = threading.Event()

    def repeat() -> None:
        work()
        while not ended.is_set():
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
