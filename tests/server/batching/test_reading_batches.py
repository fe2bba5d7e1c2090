"""Tests that images of a reading engine are run by it, in batches of their own, and never disturb other images."""

import asyncio
from collections.abc import AsyncIterator
from itertools import chain

import numpy as np
import pytest
from fakes.reading_engine import FakeReadingEngine, fake_maps
from fakes.serving import SIDE, FakeEngine, pixels_of
from zfserve_engines.readings.plan import Reading, ReadingPlan, ReadValues, Replacement
from zfserve_runtime.errors import DeadlineExceeded, EngineFailed, EngineHung, EngineLost
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.admission.caller_identity import CallerIdentity
from zfserve_server.batching.batcher import Batcher
from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.batching.watchdog import WatchdogPolicy

NEVER = Deadline()
MAPS = Reading("conv1", 6, 4, 4, "maps")
STRONGEST = Reading("conv1", 6, 4, 4, "strongest")
PLAN = ReadingPlan((MAPS, STRONGEST), "conv1", 6)
LABELS = {"model": "fake", "version": "7"}

Task = asyncio.Task[InferenceResult]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def batcher(engine: FakeEngine, metrics: Metrics) -> AsyncIterator[Batcher]:
    batcher = Batcher([engine], (SIDE, SIDE, 3), metrics.of_model("fake", "7"), lambda: None)
    batcher.start()
    yield batcher
    engine.open.set()
    await batcher.close()


@pytest.fixture
def reading() -> FakeReadingEngine:
    return FakeReadingEngine(PLAN)


def submit(
    batcher: Batcher, identity: int, reading: FakeReadingEngine | None = None, deadline: Deadline = NEVER
) -> Task:
    return asyncio.create_task(batcher.submit(pixels_of(identity), deadline, reading=reading))


async def occupy(batcher: Batcher, engine: FakeEngine) -> Task:
    """Lets the engine that serves begin a run of image 0, so that later images stay in the queue."""
    engine.open.clear()
    first = submit(batcher, 0)
    await engine.begun()
    return first


async def test_each_image_gets_its_own_readings(
    batcher: Batcher, engine: FakeEngine, reading: FakeReadingEngine
) -> None:
    without = Replacement(np.array([[0, 1, 1, 1, 1, 0]], np.float32), np.zeros((1, 6), np.float32))
    results = await asyncio.gather(
        *(batcher.submit(pixels_of(number), NEVER, reading=reading) for number in (3, 5)),
        batcher.submit(pixels_of(7), NEVER, reading=reading, replacement=without),
        batcher.submit(pixels_of(9), NEVER),
    )
    for number, result in zip((3, 5, 7), results, strict=False):
        maps, strongest = result.readings
        assert np.array_equal(maps.values, fake_maps(number, MAPS))
        assert strongest.values.tolist() == [number + index for index in range(6)]
        assert strongest.rows is not None
        assert strongest.columns is not None
        assert (strongest.rows * 4 + strongest.columns).tolist() == [(number + index) % 16 for index in range(6)]
    assert np.isclose(results[2].probabilities[7], 0.548)
    assert results[3].readings == ()
    assert engine.batches == [[9]]


async def test_a_batch_has_images_of_one_engine_and_interactive_ones_come_first(
    batcher: Batcher, engine: FakeEngine, reading: FakeReadingEngine
) -> None:
    order: list[str] = []
    other = FakeReadingEngine(PLAN)
    for name, one in (("serving", engine), ("reading", reading), ("other", other)):
        one.run = _noting(order, name, one.run)  # type: ignore[method-assign, assignment]
    first = await occupy(batcher, engine)
    tasks = [submit(batcher, number, (reading, other)[number % 2]) for number in range(2, 8)]
    await asyncio.sleep(0)
    tasks += [submit(batcher, number) for number in (10, 11)]
    await asyncio.sleep(0)
    engine.open.set()
    results = await asyncio.gather(first, *tasks)
    assert engine.batches == [[0], [10, 11]]
    assert order[:2] == ["serving", "serving"]
    assert sorted(chain(*reading.batches)) == [2, 4, 6]
    assert sorted(chain(*other.batches)) == [3, 5, 7]
    assert [result.features[0] for result in results] == [0, 2, 3, 4, 5, 6, 7, 10, 11]


def _noting(order: list[str], name: str, run: object) -> object:
    def noted(*arguments: object) -> object:
        order.append(name)
        return run(*arguments)  # type: ignore[operator]

    return noted


async def test_a_study_fills_its_batches_while_nobody_else_calls(reading: FakeReadingEngine) -> None:
    """While interactive images come, a bulk batch of a slow engine has one image. Otherwise it is full."""
    for interactive_first, wanted in ((False, [[1], [2, 3, 4, 5], [6]]), (True, [[1], [2], [3], [4], [5], [6]])):
        reading = FakeReadingEngine(PLAN)
        engine = FakeEngine()
        batcher = Batcher([engine], (SIDE, SIDE, 3), Metrics().of_model("fake", "7"), lambda: None)
        batcher.start()
        if interactive_first:
            await batcher.submit(pixels_of(0), NEVER)
        reading.open.clear()
        tasks = [submit(batcher, 1, reading)]
        assert await asyncio.to_thread(reading.runs.acquire, timeout=30)
        tasks += [submit(batcher, number, reading) for number in range(2, 7)]
        await asyncio.sleep(0)
        batcher._threads[0]._pace.observe(reading, 1, 1.0)  # a slow engine: one image a second
        reading.open.set()
        await asyncio.gather(*tasks)
        await batcher.close()
        assert reading.batches == wanted


async def test_neither_the_rate_nor_the_figures_of_the_model_count_studies(
    batcher: Batcher, engine: FakeEngine, reading: FakeReadingEngine, metrics: Metrics
) -> None:
    await batcher.submit(pixels_of(1), NEVER, reading=reading)
    await asyncio.sleep(0.01)
    measured = batcher.service_rate.measured
    assert not measured
    assert metrics.registry.get_sample_value("zfserve_batch_size_count", LABELS) == 0
    await batcher.submit(pixels_of(2), NEVER)
    await asyncio.sleep(0.01)
    measured = batcher.service_rate.measured
    assert measured
    assert batcher.service_rate.rows == 1
    assert metrics.registry.get_sample_value("zfserve_batch_size_count", LABELS) == 1


async def test_admission_knows_of_the_study_that_runs(batcher: Batcher, reading: FakeReadingEngine) -> None:
    await batcher.submit(pixels_of(1), NEVER)
    idle_s = batcher.service_rate.finish_s(0)
    reading.open.clear()
    task = submit(batcher, 2, reading)
    assert await asyncio.to_thread(reading.runs.acquire, timeout=30)
    (thread,) = batcher._threads
    thread._expected_s = 60.0
    blocked_s = [thread.reading_rest_s, batcher.service_rate.blocked_s(), batcher.service_rate.finish_s(0) - idle_s]
    assert all(50.0 < seconds <= 60.0 for seconds in blocked_s)
    thread._expected_s = 0.0  # an overdue run is expected to last as long again
    overdue_s = batcher.service_rate.blocked_s()
    assert 0.0 < overdue_s < 50.0
    reading.open.set()
    await task
    await batcher.submit(pixels_of(3), NEVER)
    assert batcher.service_rate.blocked_s() == 0.0


async def test_images_of_studies_are_bulk_whoever_sends_them(batcher: Batcher, engine: FakeEngine) -> None:
    reading = FakeReadingEngine(PLAN)
    first = await occupy(batcher, engine)
    caller = CallerIdentity("lab")  # interactive
    study = asyncio.create_task(batcher.submit(pixels_of(1), NEVER, caller, reading))
    await asyncio.sleep(0)
    later = submit(batcher, 2)
    await asyncio.sleep(0)
    engine.open.set()
    await later
    assert reading.batches in ([], [[1]])
    await asyncio.gather(first, study)


@pytest.mark.parametrize("failure", [RuntimeError("broken"), MemoryError(), EngineFailed("gave up")])
async def test_a_batch_that_fails_is_run_again_in_halves(
    batcher: Batcher, engine: FakeEngine, reading: FakeReadingEngine, failure: Exception
) -> None:
    batcher._threads[0]._pace.observe(reading, 1, 1e-4)  # so that all four fit into one batch
    reading.poison = {3}
    reading.failures.append(failure)
    first = await occupy(batcher, engine)
    tasks = [submit(batcher, number, reading) for number in range(1, 5)]
    await asyncio.sleep(0)
    engine.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InferenceResult, InferenceResult, EngineFailed, InferenceResult]
    assert (await first).features[0] == 0


async def test_missing_or_infinite_readings_fail_their_image(
    batcher: Batcher, reading: FakeReadingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reading.run

    def broken(pixels: np.ndarray, replacement: Replacement | None = None) -> object:
        outputs = run(pixels, replacement)
        outputs.readings[0].values[:, 0, 0, 0] = np.inf
        return outputs

    monkeypatch.setattr(reading, "run", broken)
    with pytest.raises(EngineFailed, match="not finite"):
        await batcher.submit(pixels_of(1), NEVER, reading=reading)

    def short(pixels: np.ndarray, replacement: Replacement | None = None) -> object:
        outputs = run(pixels, replacement)
        cut = ReadValues(outputs.readings[0].values[:0])
        return type(outputs)(outputs.probabilities, outputs.features, (cut,))

    monkeypatch.setattr(reading, "run", short)
    with pytest.raises(EngineFailed):
        await batcher.submit(pixels_of(1), NEVER, reading=reading)
    assert (await batcher.submit(pixels_of(2), NEVER)).features[0] == 2


async def test_a_cancelled_and_an_expired_image_are_not_run(
    batcher: Batcher, engine: FakeEngine, reading: FakeReadingEngine
) -> None:
    first = await occupy(batcher, engine)
    cancelled, late, other = (
        submit(batcher, 1, reading),
        submit(batcher, 2, reading, Deadline.after(0.0)),
        submit(batcher, 3, reading),
    )
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    engine.open.set()
    with pytest.raises(DeadlineExceeded):
        await late
    await asyncio.gather(first, other)
    assert reading.batches == [[3]]


async def test_images_of_a_closed_engine_fail(batcher: Batcher, reading: FakeReadingEngine) -> None:
    reading.close()
    with pytest.raises(EngineHung):
        await batcher.submit(pixels_of(1), NEVER, reading=reading)
    assert reading.batches == []


async def test_a_lost_device_ends_the_batcher(engine: FakeEngine, reading: FakeReadingEngine) -> None:
    lost = asyncio.Event()
    batcher = Batcher([engine], (SIDE, SIDE, 3), Metrics().of_model("fake", "7"), lost.set)
    batcher.start()
    reading.failures.append(EngineLost("an illegal address"))
    with pytest.raises(EngineLost):
        await batcher.submit(pixels_of(1), NEVER, reading=reading)
    await lost.wait()
    await batcher.close()


async def test_a_reading_engine_that_hangs_is_closed_and_the_server_goes_on() -> None:
    """Each of the hung threads is replaced, also the second, whose engine had run nothing else."""
    lost = asyncio.Event()
    replacements = [FakeEngine(), FakeEngine()]
    spare = iter(replacements)
    engine = FakeEngine()
    policy = WatchdogPolicy(0.1, lambda: next(spare))
    batcher = Batcher([engine], (SIDE, SIDE, 3), Metrics().of_model("fake", "7"), lost.set, policy)
    batcher.start()
    hanging = [FakeReadingEngine(PLAN), FakeReadingEngine(PLAN)]
    for one in hanging:
        one.open.clear()
        tasks = [submit(batcher, number, one) for number in (1, 2)]
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, EngineHung)
        assert one.closed
    assert (await batcher.submit(pixels_of(5), NEVER)).features[0] == 5
    assert not lost.is_set()
    assert replacements[1].batches == [[5]]
    for one in hanging:
        one.open.set()
    await batcher.close()
