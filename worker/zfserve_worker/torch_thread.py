"""Runs PyTorch in one thread, and limits the calls that may use it. The event loop never blocks on the thread.

Calls take turns, one step each: a result, or a part of one. So a long call cannot starve a short one, and a client that
reads slowly delays only itself.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from zfserve_runtime.errors import DeadlineExceeded, EngineLost, Overloaded
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import ModelMetrics

RETRY_AFTER_S = 1.0
"""About the time that a call of a few projections takes."""

P = ParamSpec("P")
T = TypeVar("T")


class TorchThread:
    """Runs functions whole, and generators one step at a time.

    Args:
        threads: the number of CPU threads that one PyTorch operation may use.
        max_streams: the largest number of streams in flight. Further streams are refused.
        on_lost: called on the event loop each time the GPU fails permanently. The process can compute no more.

    Attributes:
        lost: True once the GPU failed permanently.
    """

    def __init__(self, threads: int, max_streams: int, on_lost: Callable[[], None] = lambda: None) -> None:
        # OpenMP keeps this number for each calling thread, so the thread that will compute sets it.
        self._executor = ThreadPoolExecutor(1, "torch", initializer=torch.set_num_threads, initargs=(threads,))
        self._max_streams = max_streams
        self._on_lost = on_lost
        self.lost = False
        self._in_flight = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` in the thread and returns its result. If the caller is cancelled first, it never starts.

        Raises:
            Overloaded: the GPU has no memory left.
            EngineLost: the GPU failed permanently.
        """
        try:
            return await asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))
        except torch.OutOfMemoryError as error:
            raise Overloaded("the GPU has no memory left for this call", retry_after_s=RETRY_AFTER_S) from error
        except torch.AcceleratorError as error:
            self.lost = True
            self._on_lost()
            raise EngineLost("the worker lost its GPU and restarts; try again shortly") from error

    async def stream(
        self, results: Generator[T | None, None, None], deadline: Deadline, metrics: ModelMetrics
    ) -> AsyncGenerator[T, None]:
        """Yields the results. Each is computed when it is asked for. No further step runs once the stream is closed.

        Args:
            results: the generator to run in the thread. A None that it yields ends a step without a result.
            deadline: the deadline of the call.
            metrics: the metrics of the model that computes.

        Raises:
            Overloaded: `max_streams` streams are in flight, or the GPU has no memory left.
            DeadlineExceeded: the deadline passed while the stream waited for the thread, or between two results.
            EngineLost: the GPU failed permanently.
        """
        if self._in_flight >= self._max_streams:
            raise Overloaded(
                f"{self._max_streams} calls are in flight already; try again in {RETRY_AFTER_S:.0f} s",
                retry_after_s=RETRY_AFTER_S,
            )
        self._in_flight += 1
        steps = _steps(results, time.perf_counter(), metrics)
        try:
            with metrics.queue_depth.track_inprogress():
                step = await self._next(steps, deadline)
            while step is not None:
                if (result := step[0]) is not None:
                    yield result
                step = await self._next(steps, deadline)
        finally:
            self._in_flight -= 1
            # The thread closes the generator, because it may still run a step of it. The executor refuses after
            # `close`, but then no step runs any more.
            with suppress(RuntimeError):
                self._executor.submit(steps.close)

    def close(self) -> None:
        """Waits for the step that runs, and drops the steps that wait."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _next(self, steps: Generator[tuple[T | None], None, None], deadline: Deadline) -> tuple[T | None] | None:
        deadline.check()
        # The step runs in the context of its call, so that its log lines and spans carry the request's id.
        step = partial(copy_context().run, partial(next, steps, None))
        try:
            async with asyncio.timeout(deadline.remaining_s()) as timer:
                return await self.run(step)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise DeadlineExceeded("the deadline passed while the worker computed; allow more time") from error


def _steps(
    results: Generator[T | None, None, None], admitted_s: float, metrics: ModelMetrics
) -> Generator[tuple[T | None], None, None]:
    """Yields each of `results` in a tuple, so that none can be mistaken for the end.

    Args:
        results: the generator to run.
        admitted_s: when the stream was admitted, in seconds of `time.perf_counter()`. The first step ends the wait.
        metrics: the metrics that count the wait.
    """
    metrics.queue_seconds.observe(time.perf_counter() - admitted_s)
    with closing(results):
        for result in results:
            yield (result,)
