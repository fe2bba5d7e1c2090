"""Tests turns, limits, deadlines and cancellation, with plain generators in place of the deconvnet."""

import asyncio
import threading
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass, field

import pytest
import torch
from zfserve_runtime.errors import DeadlineExceeded, EngineLost, Overloaded
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import Metrics, ModelMetrics
from zfserve_worker.torch_thread import TorchThread


class Work:
    """Makes a generator of numbers. Each step waits for a permit. Records the steps and the close."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.permits = threading.Semaphore(0)
        self.computed: list[int] = []
        self.threads: set[str] = set()
        self.closed = threading.Event()
        self._loop = asyncio.get_running_loop()
        self.began = asyncio.Event()

    def run(self) -> Generator[int, None, None]:
        self._loop.call_soon_threadsafe(self.began.set)
        try:
            for step in range(self.steps):
                self.permits.acquire()
                self.threads.add(threading.current_thread().name)
                self.computed.append(step)
                yield step
        finally:
            self.closed.set()

    def permit(self, steps: int) -> None:
        self.permits.release(steps)


LABELS = {"model": "tiny", "version": "1"}
UNUSED_METRICS = Metrics().of_model("tiny", "1")
"""Metrics for tests that do not read them."""


@pytest.fixture
async def torch_thread() -> AsyncIterator[TorchThread]:
    torch_thread = TorchThread(threads=1, max_streams=2)
    yield torch_thread
    torch_thread.close()


async def collect(torch_thread: TorchThread, work: Work, metrics: ModelMetrics = UNUSED_METRICS) -> list[int]:
    return [step async for step in torch_thread.stream(work.run(), Deadline(), metrics)]


async def closed(torch_thread: TorchThread, work: Work) -> bool:
    """Waits until the thread has finished its work, and returns True if the generator is closed."""
    return await torch_thread.run(work.closed.is_set)


async def test_results_come_in_order_from_one_other_thread(torch_thread: TorchThread) -> None:
    work, metrics = Work(3), Metrics()
    collecting = asyncio.ensure_future(collect(torch_thread, work, metrics.of_model(*LABELS.values())))
    await work.began.wait()  # The thread waits in its first step; the event loop does not.
    assert metrics.registry.get_sample_value("zfserve_queue_depth", LABELS) == 1
    work.permit(3)
    assert await collecting == [0, 1, 2]
    assert len(work.threads) == 1
    assert threading.current_thread().name not in work.threads
    assert metrics.registry.get_sample_value("zfserve_queue_depth", LABELS) == 0
    assert metrics.registry.get_sample_value("zfserve_queue_seconds_count", LABELS) == 1


async def test_streams_take_turns(torch_thread: TorchThread) -> None:
    long, short = Work(50), Work(2)
    long.permit(1)
    short.permit(2)
    running = torch_thread.stream(long.run(), Deadline(), UNUSED_METRICS)
    assert await anext(running) == 0
    assert await collect(torch_thread, short) == [0, 1]
    assert long.computed == [0]
    await running.aclose()


async def test_a_step_without_a_result_lets_other_streams_run(torch_thread: TorchThread) -> None:
    order: list[str] = []
    began, may_go_on = threading.Event(), threading.Event()

    def in_parts() -> Generator[str | None, None, None]:
        for part in range(3):
            order.append(f"part {part}")
            began.set()
            may_go_on.wait()
            yield None
        yield "whole"

    def other() -> Generator[str, None, None]:
        order.append("other")
        yield "other"

    first = asyncio.ensure_future(anext(torch_thread.stream(in_parts(), Deadline(), UNUSED_METRICS)))
    await asyncio.to_thread(began.wait)
    second = asyncio.ensure_future(anext(torch_thread.stream(other(), Deadline(), UNUSED_METRICS)))
    await asyncio.sleep(0)
    may_go_on.set()
    assert (await first, await second) == ("whole", "other")
    assert order == ["part 0", "other", "part 1", "part 2"]


async def test_nothing_is_computed_ahead_of_a_slow_reader(torch_thread: TorchThread) -> None:
    work = Work(5)
    work.permit(5)
    running = torch_thread.stream(work.run(), Deadline(), UNUSED_METRICS)
    await anext(running)
    await torch_thread.run(lambda: None)
    assert work.computed == [0]
    await running.aclose()


async def test_a_stream_beyond_the_limit_is_refused_at_once(torch_thread: TorchThread) -> None:
    first, second, third = Work(1), Work(1), Work(1)
    accepted = [asyncio.ensure_future(collect(torch_thread, work)) for work in (first, second)]
    await first.began.wait()
    with pytest.raises(Overloaded) as refused:
        await collect(torch_thread, third)
    assert refused.value.retry_after_s == 1
    assert third.computed == []
    for work in (first, second, third):
        work.permit(1)
    assert [await results for results in accepted] == [[0], [0]]
    assert await collect(torch_thread, third) == [0]


async def test_a_deadline_that_passes_in_the_queue_ends_the_wait(torch_thread: TorchThread) -> None:
    busy, late = Work(1), Work(1)
    running = asyncio.ensure_future(collect(torch_thread, busy))
    await busy.began.wait()
    with pytest.raises(DeadlineExceeded):
        await anext(torch_thread.stream(late.run(), Deadline.after(0.01), UNUSED_METRICS))
    busy.permit(1)
    assert await running == [0]
    await torch_thread.run(lambda: None)
    assert not late.began.is_set()


@dataclass(frozen=True)
class HandSetDeadline(Deadline):
    """Stands for a deadline. It expires when the test sets `passed`."""

    passed: asyncio.Event = field(default_factory=asyncio.Event)

    def expired(self, early_s: float = 0.0) -> bool:
        return self.passed.is_set()


async def test_a_deadline_that_passes_between_results_ends_the_work(torch_thread: TorchThread) -> None:
    work, deadline = Work(5), HandSetDeadline()
    work.permit(5)
    running = torch_thread.stream(work.run(), deadline, UNUSED_METRICS)
    assert await anext(running) == 0
    deadline.passed.set()
    with pytest.raises(DeadlineExceeded):
        await anext(running)
    assert await closed(torch_thread, work)
    assert work.computed == [0]


async def test_cancelling_stops_the_work_after_its_step(torch_thread: TorchThread) -> None:
    work = Work(5)
    collecting = asyncio.ensure_future(collect(torch_thread, work))
    await work.began.wait()
    collecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collecting
    work.permit(5)
    assert await closed(torch_thread, work)
    assert work.computed == [0]


@pytest.mark.parametrize("error", [ValueError("broken"), TimeoutError("raised by the work itself")])
async def test_an_error_ends_its_own_stream_only(torch_thread: TorchThread, error: Exception) -> None:
    def failing() -> Generator[int, None, None]:
        yield 0
        raise error

    for _ in range(3):  # More streams than may be in flight: each one frees its place.
        with pytest.raises(type(error), match=str(error)):
            _ = [step async for step in torch_thread.stream(failing(), Deadline.after(3600), UNUSED_METRICS)]
    work = Work(2)
    work.permit(2)
    assert await collect(torch_thread, work) == [0, 1]


async def test_closing_drops_the_waiting_steps(torch_thread: TorchThread) -> None:
    busy, waiting = Work(1), Work(1)
    tasks = [asyncio.ensure_future(collect(torch_thread, work)) for work in (busy, waiting)]
    await busy.began.wait()
    busy.permit(1)
    torch_thread.close()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert not waiting.began.is_set()


def failing(error: Exception) -> Generator[int, None, None]:
    yield 1
    raise error


async def test_a_gpu_that_fails_is_lost_and_one_that_is_full_is_not() -> None:
    lost: list[None] = []
    torch_thread = TorchThread(threads=1, max_streams=2, on_lost=lambda: lost.append(None))
    with pytest.raises(Overloaded, match="no memory left"):
        async for _ in torch_thread.stream(
            failing(torch.OutOfMemoryError("CUDA out of memory")), Deadline(), UNUSED_METRICS
        ):
            pass
    assert not lost
    with pytest.raises(EngineLost, match="lost its GPU"):
        async for _ in torch_thread.stream(
            failing(torch.AcceleratorError("CUDA error: 700")), Deadline(), UNUSED_METRICS
        ):
            pass
    assert len(lost) == 1
    torch_thread.close()


async def test_a_network_that_is_loaded_on_a_lost_gpu_is_lost_too(torch_thread: TorchThread) -> None:
    def load() -> None:
        raise torch.AcceleratorError("CUDA error: 700")

    assert not torch_thread.lost
    with pytest.raises(EngineLost, match="lost its GPU"):
        await torch_thread.run(load)
    assert torch_thread.lost
