"""Engines that hang: what their callers hear, and who serves next."""

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
"""Far longer than a run of an engine that does nothing."""

NEVER = Deadline()


class Engines:
    """Those that are opened in place of one that hangs, and what the batcher told meanwhile."""

    def __init__(self) -> None:
        self.opened: list[FakeEngine] = []
        self.hanging = 0
        self.stalls: asyncio.Queue[bool] = asyncio.Queue()
        self.dead = asyncio.Event()

    def reopen(self) -> Engine:
        engine = FakeEngine()
        if self.hanging:
            self.hanging -= 1
            engine.open.clear()
        self.opened.append(engine)
        return engine


@pytest.fixture
def spare() -> Engines:
    return Engines()


@asynccontextmanager
async def batching(*engines: FakeEngine, spare: Engines, reopen: Callable[[], Engine] | None) -> AsyncIterator[Batcher]:
    policy = WatchdogPolicy(TIMEOUT_S, reopen, spare.stalls.put_nowait)
    batcher = Batcher(engines, (SIDE, SIDE, 3), Metrics().of_model("fake", "7"), spare.dead.set, policy)
    batcher.start()
    yield batcher
    for engine in (*engines, *spare.opened):
        engine.open.set()
    await batcher.close()


def submit(batcher: Batcher, identity: int) -> "asyncio.Task[InferenceResult]":
    return asyncio.create_task(batcher.submit(pixels_of(identity), NEVER))


async def test_a_fresh_engine_serves_in_place_of_one_that_hangs(engine: FakeEngine, spare: Engines) -> None:
    async with batching(engine, spare=spare, reopen=spare.reopen) as batcher:
        engine.open.clear()
        caught = submit(batcher, 1)
        await engine.begun()
        waiting = submit(batcher, 2)
        assert await spare.stalls.get() is True
        with pytest.raises(EngineHung):
            await caught
        assert await spare.stalls.get() is False
        assert (await waiting).features[0] == 2, "who was not in the batch has lost nothing but time"
        assert (await submit(batcher, 3)).features[0] == 3
        assert engine.batches == [[1]]
        assert not batcher.stalled
        assert not spare.dead.is_set()


async def test_a_hung_engine_that_comes_to_is_closed_and_lets_go_of_its_memory(spare: Engines) -> None:
    closed = threading.Event()

    class SlowEngine(FakeEngine):
        def close(self) -> None:
            closed.set()

    engine = SlowEngine()
    gone = weakref.ref(engine)
    async with batching(engine, spare=spare, reopen=spare.reopen) as batcher:
        engine.open.clear()
        caught = submit(batcher, 1)
        with pytest.raises(EngineHung):
            await caught
        assert await spare.stalls.get() is True
        assert await spare.stalls.get() is False
        engine.open.set()
        assert await asyncio.to_thread(closed.wait, 30)
        assert (await submit(batcher, 2)).features[0] == 2
        assert engine.batches == [[1]], "it takes nothing any more"
    thread = next((thread for thread in threading.enumerate() if thread.name == "engine"), None)
    if thread is not None:
        await asyncio.to_thread(thread.join)
    del engine, batcher, caught, thread
    gc.collect()
    assert gone() is None


async def test_with_another_engine_at_work_nothing_stalls(spare: Engines) -> None:
    pair = FakeEngine(1), FakeEngine(1)
    pair[1].runs = pair[0].runs
    async with batching(*pair, spare=spare, reopen=spare.reopen) as batcher:
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
        assert spare.stalls.empty()


@pytest.mark.parametrize("way", ["no fresh engine helps here", "it cannot be opened", "the fresh one hangs at once"])
async def test_where_a_fresh_engine_does_not_help_the_batcher_gives_up(
    engine: FakeEngine, spare: Engines, way: str
) -> None:
    def unavailable() -> Engine:
        raise EngineUnavailable("no")

    spare.hanging = 1
    reopen = {"no": None, "it": unavailable, "the": spare.reopen}[way.split()[0]]
    async with batching(engine, spare=spare, reopen=reopen) as batcher:
        engine.open.clear()
        caught = submit(batcher, 1)
        await engine.begun()
        waiting = submit(batcher, 2)
        await spare.dead.wait()
        with pytest.raises(EngineHung):
            await caught
        with pytest.raises(EngineHung if spare.opened else EngineLost):
            await waiting
        with pytest.raises(EngineLost):
            await submit(batcher, 3)
        assert batcher.engine_lost


async def test_too_many_hung_engines_are_more_than_a_process_should_hold(engine: FakeEngine, spare: Engines) -> None:
    async with batching(engine, spare=spare, reopen=spare.reopen) as batcher:
        serving = engine
        for number in range(MAX_HUNG_ENGINES + 1):
            assert (await submit(batcher, number)).features[0] == number
            serving.open.clear()
            with pytest.raises(EngineHung):
                await submit(batcher, 9)
            if number < MAX_HUNG_ENGINES:
                assert [await spare.stalls.get(), await spare.stalls.get()] == [True, False]
                serving = spare.opened[-1]
        assert spare.dead.is_set()


async def test_closing_leaves_an_engine_that_hangs_behind(
    engine: FakeEngine, spare: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfserve_server.batching.batcher.CLOSE_GRACE_S", 0.05)
    async with batching(engine, spare=spare, reopen=None) as batcher:
        engine.open.clear()
        caught = submit(batcher, 1)
        await engine.begun()
        await batcher.close()
        with pytest.raises(EngineHung):
            await caught
        assert batcher.engine_lost
        assert not engine.closed, "its thread uses it"
