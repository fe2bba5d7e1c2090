"""Tests that reading engines are opened once, shared, bounded in number, and closed when idle or with the model."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from fakes.reading_engine import FakeReadingEngine
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.readings.plan import Reading, ReadingPlan
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineFailed, EngineLost, ServiceError, ShuttingDown
from zfserve_server.models.reading_engines import MAX_OPEN, ReadingEngines

PLANS = [ReadingPlan((Reading(f"conv{index}", 4, 2, 2, "sums"),)) for index in range(4)]


class Openings:
    """Opens fake engines. `open` holds openings back while it is cleared; `failures` are raised in their order."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.engines: list[FakeReadingEngine] = []
        self.failures: list[Exception] = []
        self.began = threading.Semaphore(0)

    def __call__(self, plan: ReadingPlan) -> FakeReadingEngine:
        self.began.release()
        assert self.open.wait(timeout=30)
        if self.failures:
            raise self.failures.pop(0)
        self.engines.append(FakeReadingEngine(plan))
        return self.engines[-1]

    @property
    def closed(self) -> list[bool]:
        return [engine.closed for engine in self.engines]


@pytest.fixture
def openings() -> Openings:
    return Openings()


@pytest.fixture
async def readings(openings: Openings) -> AsyncIterator[ReadingEngines]:
    readings = ReadingEngines(openings)
    yield readings
    openings.open.set()
    await readings.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_callers_share_one_opening_and_one_engine(readings: ReadingEngines, openings: Openings) -> None:
    openings.open.clear()

    async def use() -> object:
        async with readings.use(PLANS[0]) as engine:
            return engine

    tasks = [asyncio.create_task(use()) for _ in range(3)]
    assert await asyncio.to_thread(openings.began.acquire, timeout=30)
    # One of them is cancelled, and the others get the engine.
    tasks[0].cancel()
    openings.open.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1] is found[2] is openings.engines[0]
    async with readings.use(PLANS[0]) as engine:
        assert engine is openings.engines[0]
    assert len(openings.engines) == 1


async def test_an_idle_engine_makes_room_and_one_in_use_is_waited_for(
    readings: ReadingEngines, openings: Openings
) -> None:
    assert MAX_OPEN == 2
    async with readings.use(PLANS[0]):
        pass
    async with readings.use(PLANS[1]):
        async with readings.use(PLANS[2]):  # the first engine is idle
            await until(lambda: openings.closed == [True, False, False])
            third = asyncio.create_task(_use(readings, PLANS[3]))
            await asyncio.sleep(0.01)
            assert not third.done()
            assert len(openings.engines) == 3
        await third
        await until(lambda: openings.closed == [True, False, True, False])
    async with readings.use(PLANS[1]) as engine:
        assert engine is openings.engines[1]


async def _use(readings: ReadingEngines, plan: ReadingPlan) -> None:
    async with readings.use(plan):
        pass


async def test_the_engine_that_is_idle_longest_makes_room(readings: ReadingEngines, openings: Openings) -> None:
    for index in (0, 1, 0, 2):
        await _use(readings, PLANS[index])
    await until(lambda: openings.closed == [False, True, False])


async def test_an_engine_is_closed_after_an_idle_time(openings: Openings) -> None:
    readings = ReadingEngines(openings, idle_s=0.05)
    async with readings.use(PLANS[0]):
        await asyncio.sleep(0.1)
        assert openings.closed == [False]
    await _use(readings, PLANS[0])
    await until(lambda: openings.closed == [True])
    await _use(readings, PLANS[0])
    assert len(openings.engines) == 2
    await readings.close()
    assert openings.closed == [True, True]


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (EngineUnavailable("onnx is not installed"), "onnx is not installed"),
        (BundleError("model.onnx has changed"), "model.onnx has changed"),
        (EngineLost("the GPU is lost"), "the GPU is lost"),
        (RuntimeError("secret /path"), "the server's log says why"),
    ],
)
async def test_an_opening_that_fails_is_one_sentence_and_can_be_tried_again(
    readings: ReadingEngines, openings: Openings, failure: Exception, says: str
) -> None:
    openings.failures.append(failure)
    with pytest.raises(ServiceError, match=says) as refused:
        await _use(readings, PLANS[0])
    assert "secret" not in refused.value.message
    assert isinstance(refused.value, EngineFailed)
    await _use(readings, PLANS[0])


async def test_an_opening_that_hangs_is_given_up(
    readings: ReadingEngines, openings: Openings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfserve_server.models.reading_engines.OPEN_TIMEOUT_S", 0.05)
    openings.open.clear()
    with pytest.raises(EngineFailed, match="in time"):
        await _use(readings, PLANS[0])
    openings.open.set()
    await until(lambda: openings.closed == [True])  # it came late
    await _use(readings, PLANS[0])
    assert openings.closed == [True, False]


async def test_an_engine_that_was_closed_because_it_hung_is_opened_anew(
    readings: ReadingEngines, openings: Openings
) -> None:
    async with readings.use(PLANS[0]) as engine:
        engine.close()
    async with readings.use(PLANS[0]) as another:
        assert another is openings.engines[1]


async def test_closing_refuses_later_uses_and_those_that_wait(openings: Openings) -> None:
    readings = ReadingEngines(openings)
    async with readings.use(PLANS[0]), readings.use(PLANS[1]):
        waiting = asyncio.create_task(_use(readings, PLANS[2]))
        await asyncio.sleep(0)
        await readings.close()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await _use(readings, PLANS[0])
    assert openings.closed == [True, True]


async def test_closing_ends_an_opening_that_nobody_waits_for(openings: Openings) -> None:
    readings = ReadingEngines(openings)
    openings.open.clear()
    task = asyncio.create_task(_use(readings, PLANS[0]))
    assert await asyncio.to_thread(openings.began.acquire, timeout=30)
    task.cancel()
    await asyncio.wait([task])
    await readings.close()
    openings.open.set()
    await until(lambda: openings.closed == [True])
