"""Runs a closed loop: each client waits for an answer before it makes its next call. Runs in the load process."""

import asyncio
import time
from collections.abc import Sequence
from typing import TypeAlias

import grpc

from zfserve_bench.load.protocol import ClosedLoop, ClosedLoopResult

TIMEOUT_S = 60.0

UnaryCall: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class AnswerCounter:
    """Counts answers. The clock starts with the last answer of the warm-up and stops with the last counted answer.

    Answers come in bursts, one batch at a time. A clock that runs from answer to answer counts whole bursts if the
    number of calls is a multiple of their size. A clock that runs for a fixed time is off by up to a batch.
    """

    def __init__(self, order: ClosedLoop) -> None:
        self._order = order
        self._seen = 0
        self._started: tuple[float, float]
        self.result: ClosedLoopResult | None = None

    def answered(self) -> None:
        self._seen += 1
        if self._seen == self._order.warm_up:
            self._started = time.perf_counter(), time.process_time()
        elif self._seen == self._order.warm_up + self._order.calls:
            seconds, cpu_s = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
            self.result = ClosedLoopResult(self._order.calls, seconds, cpu_s)


async def run_closed_loop(
    classify: Sequence[UnaryCall], requests: Sequence[bytes], order: ClosedLoop
) -> ClosedLoopResult:
    """Lets `order.clients` clients call until enough calls are answered, then waits for those in flight.

    Args:
        classify: the method of each client, on its own channel.
        requests: the requests, sent in turn.

    Raises:
        ExceptionGroup: a call failed. It contains the AioRpcErrors.
    """
    assert order.warm_up >= 1, "the clock starts with an answer"
    counter = AnswerCounter(order)

    async def call(first: int) -> None:
        position = first
        while counter.result is None:
            await classify[first](requests[position % len(requests)], timeout=TIMEOUT_S)
            counter.answered()
            position += 1

    async with asyncio.TaskGroup() as clients:
        for index in range(order.clients):
            clients.create_task(call(index))
    assert counter.result is not None
    return counter.result
