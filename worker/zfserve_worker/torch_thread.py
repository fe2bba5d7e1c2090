"""The one thread that runs torch, and the bounded door before it. The event loop waits for it and never blocks.

Calls take turns, one result each: a long call cannot starve a short one, and a client that reads slowly holds up
nobody but itself.
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
"""Roughly the time in which a call of a few projections makes room."""

P = ParamSpec("P")
T = TypeVar("T")


class TorchThread:
    """Runs functions, and generators step by step.

    Args:
        threads: that one torch operation may use in parallel.
        limit: streams admitted at a time; one more is refused.
        on_lost: called, on the event loop, whenever the GPU fails: nothing more can be computed in this process.

    Attributes:
        lost: whether it did.
    """

    def __init__(self, threads: int, limit: int, on_lost: Callable[[], None] = lambda: None) -> None:
        # OpenMP keeps the number for each calling thread, so it is set by the thread that will use it.
        self._executor = ThreadPoolExecutor(1, "torch", initializer=torch.set_num_threads, initargs=(threads,))
        self._limit = limit
        self._on_lost = on_lost
        self.lost = False
        self._admitted = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns. Cancelled while it waits for the thread, it is never begun.

        Raises:
            Overloaded: the GPU has no memory left.
            EngineLost: the GPU failed for good.
        """
        try:
            return await asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))
        except torch.OutOfMemoryError as error:
            raise Overloaded("the GPU has no memory left for a projection", retry_after_s=RETRY_AFTER_S) from error
        except torch.AcceleratorError as error:
            self.lost = True
            self._on_lost()
            raise EngineLost("the worker's GPU failed for good; try again shortly") from error

    async def stream(
        self, results: Generator[T, None, None], deadline: Deadline, metrics: ModelMetrics
    ) -> AsyncGenerator[T, None]:
        """The results one by one, each computed when it is asked for. Closing early stops the work after its step.

        Args:
            metrics: of the model that computes them.

        Raises:
            Overloaded: there are `limit` streams already, or the GPU has no memory left.
            DeadlineExceeded: the deadline passed while waiting for the thread or between two results.
            EngineLost: the GPU failed for good.
        """
        if self._admitted >= self._limit:
            raise Overloaded(
                f"{self._limit} projection requests are being worked on; try again in {RETRY_AFTER_S:.0f} s",
                retry_after_s=RETRY_AFTER_S,
            )
        self._admitted += 1
        steps = _steps(results, time.perf_counter(), metrics)
        try:
            with metrics.queue_depth.track_inprogress():
                step = await self._next(steps, deadline)
            while step is not None:
                yield step[0]
                step = await self._next(steps, deadline)
        finally:
            self._admitted -= 1
            # By the thread itself, which may be inside the generator still; once that has ended, nothing is.
            with suppress(RuntimeError):
                self._executor.submit(steps.close)

    def close(self) -> None:
        """Finish the step that runs; drop those that wait."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _next(self, steps: Generator[tuple[T], None, None], deadline: Deadline) -> tuple[T] | None:
        deadline.check()
        # It works in the context of its call: what it logs carries the request's id, and its spans are that request's.
        step = partial(copy_context().run, partial(next, steps, None))
        try:
            async with asyncio.timeout(deadline.remaining_s()) as timer:
                return await self.run(step)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise DeadlineExceeded("the deadline passed during the projection; allow more time") from error


def _steps(
    results: Generator[T, None, None], admitted_s: float, metrics: ModelMetrics
) -> Generator[tuple[T], None, None]:
    """`results` each in a tuple, so that no result can be mistaken for the end."""
    metrics.queue_seconds.observe(time.perf_counter() - admitted_s)
    with closing(results):
        for result in results:
            yield (result,)
