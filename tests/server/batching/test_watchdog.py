"""Tests which errors callers get when an engine hangs, and which engine serves next."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fakes.serving import SIDE, FakeEngine, pixels_of
from zfserve_engines.contract import Engine, EngineUnavailable
from zfserve_runtime.errors import EngineHung, EngineLost
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.batching.batcher import Batcher
from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.batching.watchdog import MAX_HUNG_ENGINES, WatchdogPolicy

TIMEOUT_S = 0.4
"""The timeout of a run. An engine that does not hang takes far less."""

NEVER = Deadline()


class Spares:
    """Opens engines in place of hung ones, and records the calls of the batcher's callbacks.

    Attributes:
        opened: the engines that `reopen` has opened.
        hanging: the number of engines to open next that hang in their first run.
        stalls: the arguments of the calls of `on_stall`.
        engine_lost: set once the batcher has given up.
    """

    def __init__(self) -> None:
        self.opened: list[FakeEngine] = []
        self.hanging = 0
        self.stalls: asyncio.Queue[bool] = asyncio.Queue()
        self.engine_lost = asyncio.Event()

    def reopen(self) -> Engine:
        engine = FakeEngine()
        if self.hanging:
            self.hanging -= 1
            engine.open.clear()
        self.opened.append(engine)
        return engine


@pytest.fixture
def spares() -> Spares:
    return Spares()


@asynccontextmanager
async def batching(*engines: FakeEngine, spares: Spares, reopen: Callable[[], Engine] | None) -> AsyncIterator[Batcher]:
    policy = WatchdogPolicy(TIMEOUT_S, reopen, spares.stalls.put_nowait)
    batcher = Batcher(engines, (SIDE, SIDE, 3), Metrics().of_model("fake", "7"), spares.engine_lost.set, policy)
    batcher.start()
    yield batcher
    for engine in (*engines, *spares.opened):
        engine.open.set()
    await batcher.close()


def submit(batcher: Batcher, identity: int) -> "asyncio.Task[InferenceResult]":
    return asyncio.create_task(batcher.submit(pixels_of(identity), NEVER))


async def test_a_new_engine_replaces_one_that_hangs(engine: FakeEngine, spares: Spares) -> None:
    async with batching(engine, spares=spares, reopen=spares.reopen) as batcher:
        engine.open.clear()
        caught = submit(batcher, 1)
        await engine.begun()
        waiting = submit(batcher, 2)
        assert await spares.stalls.get() is True
        with pytest.raises(EngineHung):
            await caught
        assert await spares.stalls.get() is False
        assert (await waiting).features[0] == 2, "an image outside the hung batch must only wait longer"
        assert (await submit(batcher, 3)).features[0] == 3
        assert engine.batches == [[1]]
        assert not batcher.stalled
        assert not spares.engine_lost.is_set()


async def test_a_hung_engine_that_returns_is_closed_and_frees_its_memory(spares: Spares) -> None:
    closed = threading.Event()

    class SlowEngine(FakeEngine):
        def close(self) -> None:
            closed.set()

    engine = SlowEngine()
    gone = weakref.ref(engine)
    async with batching(engine, spares=spares, reopen=spares.reopen) as batcher:
        engine.open.clear()
        caught = submit(batcher, 1)
        with pytest.raises(EngineHung):
            await caught
        assert await spares.stalls.get() is True
        assert await spares.stalls.get() is False
        engine.open.set()
        assert await asyncio.to_thread(closed.wait, 30)
        assert (await submit(batcher, 2)).features[0] == 2
        assert engine.batches == [[1]], "it must take no further batch"
    thread = next((thread for thread in threading.enumerate() if thread.name == "engine"), None)
    if thread is not None:
        await asyncio.to_thread(thread.join)
    del engine, batcher, caught, thread
    gc.collect()
    assert gone() is None


async def test_nothing_stalls_while_another_engine_works(spares: Spares) -> None:
    pair = FakeEngine(1), FakeEngine(1)
    pair[1].runs = pair[0].runs
    async with batching(*pair, spares=spares, reopen=spares.reopen) as batcher:
        for engine in pair:
            engine.open.clear()
        tasks = [submit(batcher, identity) for identity in (1, 2)]
        for _ in tasks:
            await pair[0].begun()
        works = pair[0]
        works.open.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["EngineHung", "InferenceResult"]
        assert (await submit(batcher, 3)).features[0] == 3
        assert spares.stalls.empty()


@pytest.mark.parametrize("reason", ["only a new process helps", "it cannot be opened", "the new engine hangs at once"])
async def test_the_batcher_gives_up_if_a_new_engine_does_not_help(
    engine: FakeEngine, spares: Spares, reason: str
) -> None:
    def unavailable() -> Engine:
        raise EngineUnavailable("no")

    spares.hanging = 1
    reopen = {"only": None, "it": unavailable, "the": spares.reopen}[reason.split()[0]]
    async with batching(engine, spares=spares, reopen=reopen) as batcher:
        engine.open.clear()
        caught = submit(batcher, 1)
        await engine.begun()
        waiting = submit(batcher, 2)
        await spares.engine_lost.wait()
        with pytest.raises(EngineHung):
            await caught
        with pytest.raises(EngineHung if spares.opened else EngineLost):
            await waiting
        with pytest.raises(EngineLost):
            await submit(batcher, 3)
        assert batcher.engine_lost


async def test_the_batcher_gives_up_when_too_many_engines_hang(engine: FakeEngine, spares: Spares) -> None:
    async with batching(engine, spares=spares, reopen=spares.reopen) as batcher:
        serving = engine
        for number in range(MAX_HUNG_ENGINES + 1):
            assert (await submit(batcher, number)).features[0] == number
            serving.open.clear()
            with pytest.raises(EngineHung):
                await submit(batcher, 9)
            if number < MAX_HUNG_ENGINES:
                assert [await spares.stalls.get(), await spares.stalls.get()] == [True, False]
                serving = spares.opened[-1]
        assert spares.engine_lost.is_set()


async def test_closing_abandons_an_engine_that_hangs(
    engine: FakeEngine, spares: Spares, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfserve_server.batching.batcher.CLOSE_GRACE_S", 0.05)
    async with batching(engine, spares=spares, reopen=None) as batcher:
        engine.open.clear()
        caught = submit(batcher, 1)
        await engine.begun()
        await batcher.close()
        with pytest.raises(EngineHung):
            await caught
        assert batcher.engine_lost
        assert not engine.closed, "its thread still uses it"
