"""Each test checks one invariant of the batcher."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from fakes.serving import SIDE, FakeEngine, pixels_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zfserve_runtime.errors import DeadlineExceeded, EngineFailed, EngineLost, ShuttingDown
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.batching.batcher import Batcher
from zfserve_server.batching.queue_entry import InferenceResult

ROW_SHAPE = (SIDE, SIDE, 3)
NEVER = Deadline()


@pytest.fixture
def engine_lost() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def batcher(engine: FakeEngine, engine_lost: asyncio.Event) -> AsyncIterator[Batcher]:
    batcher = Batcher([engine], ROW_SHAPE, Metrics().of_model("fake", "7"), engine_lost.set)
    batcher.start()
    yield batcher
    engine.open.set()
    await batcher.close()


def submit(batcher: Batcher, identity: int, deadline: Deadline = NEVER) -> "asyncio.Task[InferenceResult]":
    return asyncio.create_task(batcher.submit(pixels_of(identity), deadline))


async def occupy(batcher: Batcher, engine: FakeEngine) -> "asyncio.Task[InferenceResult]":
    """Lets the engine begin a run of image 0 that waits, so that later images stay in the queue. Returns its task."""
    engine.open.clear()
    first = submit(batcher, 0)
    await engine.begun()
    return first


async def test_an_idle_engine_does_not_wait_for_a_batch_to_fill(batcher: Batcher, engine: FakeEngine) -> None:
    for identity in (1, 2, 3):
        answer = await batcher.submit(pixels_of(identity), NEVER)
        assert answer.batch_size == 1
    assert engine.batches == [[1], [2], [3]]


async def test_images_that_wait_together_run_together_oldest_first_up_to_the_batch_limit(
    batcher: Batcher, engine: FakeEngine
) -> None:
    first = await occupy(batcher, engine)
    rest = [submit(batcher, identity) for identity in range(1, 7)]
    await asyncio.sleep(0)
    engine.open.set()
    answers = await asyncio.gather(first, *rest)
    assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [answer.batch_size for answer in answers] == [1, 4, 4, 4, 4, 2, 2]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pauses=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    cancelled=st.sets(st.integers(0, 39), max_size=10),
    largest=st.integers(1, 8),
)
def test_row_i_out_belongs_to_row_i_in_and_each_resolves_once(
    pauses: list[int], cancelled: set[int], largest: int
) -> None:
    """Images arrive and are cancelled at random. A future that is resolved twice raises InvalidStateError."""

    async def scenario() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        engine = FakeEngine(largest)
        batcher = Batcher([engine], ROW_SHAPE, Metrics().of_model("fake", "7"), lambda: faults.append("lost"))
        batcher.start()
        tasks = []
        for identity, pause in enumerate(pauses):
            tasks.append(submit(batcher, identity))
            for _ in range(pause):
                await asyncio.sleep(0)
            if identity in cancelled:
                tasks[identity // 2].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        assert not faults
        for identity, answer in enumerate(answers):
            if isinstance(answer, InferenceResult):
                assert answer.features.tolist() == [identity, identity * 2]
                assert np.argmax(answer.probabilities) == identity % 10
            else:
                assert isinstance(answer, asyncio.CancelledError)

    asyncio.run(scenario())


async def test_a_cancelled_entry_is_skipped_and_the_others_are_answered(batcher: Batcher, engine: FakeEngine) -> None:
    first = await occupy(batcher, engine)
    cancelled, other = submit(batcher, 1), submit(batcher, 2)
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    engine.open.set()
    await asyncio.gather(first, other)
    assert cancelled.cancelled()
    assert engine.batches == [[0], [2]]


async def test_an_entry_cancelled_while_its_batch_runs_leaves_the_others_alone(
    batcher: Batcher, engine: FakeEngine
) -> None:
    first = await occupy(batcher, engine)
    cancelled, other = submit(batcher, 1), submit(batcher, 2)
    await asyncio.sleep(0)
    engine.open.set()
    await first
    engine.open.clear()
    cancelled.cancel()
    engine.open.set()
    assert (await other).features[0] == 2


async def test_an_expired_entry_is_never_run(batcher: Batcher, engine: FakeEngine) -> None:
    first = await occupy(batcher, engine)
    late, other = submit(batcher, 1, Deadline.after(0.0)), submit(batcher, 2, Deadline.after(60.0))
    await asyncio.sleep(0)
    engine.open.set()
    with pytest.raises(DeadlineExceeded):
        await late
    await asyncio.gather(first, other)
    assert engine.batches == [[0], [2]]


@pytest.mark.parametrize("failure", [RuntimeError("broken"), MemoryError(), EngineFailed("gave up")])
async def test_an_engine_error_fails_its_own_batch_only(
    batcher: Batcher, engine: FakeEngine, failure: Exception
) -> None:
    first = await occupy(batcher, engine)
    second = submit(batcher, 1)
    engine.failures.append(failure)
    await asyncio.sleep(0)
    engine.open.set()
    with pytest.raises(EngineFailed):
        await first
    assert (await second).features[0] == 1
    assert (await batcher.submit(pixels_of(2), NEVER)).features[0] == 2


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(poison=st.sets(st.integers(1, 9), max_size=4), not_finite=st.sets(st.integers(1, 9), max_size=4))
def test_bad_images_fail_alone_and_the_others_are_answered(poison: set[int], not_finite: set[int]) -> None:
    async def scenario() -> None:
        engine = FakeEngine(8)
        batcher = Batcher([engine], ROW_SHAPE, Metrics().of_model("fake", "7"), lambda: None)
        batcher.start()
        engine.open.clear()
        tasks = [submit(batcher, identity) for identity in range(10)]
        await engine.begun()
        engine.poison, engine.not_finite = poison, not_finite
        engine.open.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()
        for identity, outcome in enumerate(outcomes):
            if identity in poison | not_finite:
                assert isinstance(outcome, EngineFailed)
            else:
                assert isinstance(outcome, InferenceResult), outcome
                assert outcome.features[0] == identity

    asyncio.run(scenario())


async def test_missing_rows_fail_the_batch(
    batcher: Batcher, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda pixels: run(pixels[:0]))
    with pytest.raises(EngineFailed):
        await batcher.submit(pixels_of(1), NEVER)


@pytest.mark.parametrize("end", [SystemExit(), EngineLost("an illegal address")])
async def test_a_lost_engine_is_reported_and_every_call_is_answered(
    batcher: Batcher, engine: FakeEngine, engine_lost: asyncio.Event, end: BaseException
) -> None:
    running = await occupy(batcher, engine)
    waiting = submit(batcher, 1)
    await asyncio.sleep(0)
    engine.failures.append(end)
    engine.open.set()
    await engine_lost.wait()
    for task in (running, waiting, submit(batcher, 2)):
        with pytest.raises(EngineLost):
            await task
    assert batcher.engine_lost
    assert engine.batches == [[0]]


async def test_shutdown_answers_the_running_batch_and_resolves_what_is_left(
    batcher: Batcher, engine: FakeEngine
) -> None:
    running = await occupy(batcher, engine)
    waiting = submit(batcher, 1)
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(ShuttingDown):
        await waiting
    engine.open.set()
    await closing
    assert running.done()
    assert (await running).features[0] == 0
    with pytest.raises(ShuttingDown):
        await batcher.submit(pixels_of(2), NEVER)


@pytest.fixture
def pair() -> tuple[FakeEngine, FakeEngine]:
    """Returns two engines whose runs wait until `open` is set. `begun` of each waits for a run of any of the two."""
    first, second = FakeEngine(2), FakeEngine(2)
    second.runs = first.runs
    first.open.clear()
    second.open.clear()
    return first, second


async def occupy_both(batcher: Batcher, pair: tuple[FakeEngine, FakeEngine]) -> "list[asyncio.Task[InferenceResult]]":
    """Lets each engine begin a run of one image that waits. Returns the tasks in the order of the engines."""
    tasks = []
    for identity in (0, 1):
        tasks.append(submit(batcher, identity))
        await pair[0].begun()
    assert sorted(engine.batches for engine in pair) == [[[0]], [[1]]], "the idle engine must take the second image"
    return [tasks[engine.batches[0][0]] for engine in pair]


async def test_engines_side_by_side_share_the_queue(pair: tuple[FakeEngine, FakeEngine]) -> None:
    batcher = Batcher(pair, ROW_SHAPE, Metrics().of_model("fake", "7"), lambda: None)
    batcher.start()
    await occupy_both(batcher, pair)
    waiting = [submit(batcher, identity) for identity in range(2, 8)]
    await asyncio.sleep(0)
    for engine in pair:
        engine.open.set()
    answers = await asyncio.gather(*waiting)
    await batcher.close()
    assert [answer.features[0] for answer in answers] == list(range(2, 8))
    batches = [batch for engine in pair for batch in engine.batches]
    assert sorted(identity for batch in batches for identity in batch) == list(range(8)), (
        "each image must run exactly once"
    )
    assert max(map(len, batches)) == 2


async def test_an_idle_engine_takes_what_does_not_fit_into_the_batch_of_another() -> None:
    engines = FakeEngine(1), FakeEngine(1)
    engines[1].runs = engines[0].runs
    for engine in engines:
        engine.open.clear()
    batcher = Batcher(engines, ROW_SHAPE, Metrics().of_model("fake", "7"), lambda: None)
    batcher.start()
    tasks = [submit(batcher, identity) for identity in (0, 1)]
    for _ in tasks:
        await engines[0].begun()
    for engine in engines:
        engine.open.set()
    assert [answer.features[0] for answer in await asyncio.gather(*tasks)] == [0, 1]
    await batcher.close()


@pytest.mark.parametrize("other_lost_too", [False, True])
async def test_one_lost_engine_ends_all_of_them_and_is_reported_once(
    pair: tuple[FakeEngine, FakeEngine], other_lost_too: bool
) -> None:
    losses: asyncio.Queue[None] = asyncio.Queue()
    batcher = Batcher(pair, ROW_SHAPE, Metrics().of_model("fake", "7"), lambda: losses.put_nowait(None))
    batcher.start()
    lost, other = await occupy_both(batcher, pair)
    waiting = submit(batcher, 2)
    await asyncio.sleep(0)
    pair[0].failures.append(EngineLost("an illegal address"))
    pair[0].open.set()
    await losses.get()
    for task in (lost, waiting, submit(batcher, 3)):
        with pytest.raises(EngineLost):
            await task
    if other_lost_too:
        pair[1].failures.append(EngineLost("an illegal address"))
    pair[1].open.set()
    if other_lost_too:
        with pytest.raises(EngineLost):
            await other
    else:
        assert (await other).batch_size == 1
    await batcher.close()
    assert losses.empty()
    assert [len(engine.batches) for engine in pair] == [1, 1]


async def test_times_and_sizes_are_measured(engine: FakeEngine) -> None:
    metrics, labels = Metrics(), {"model": "fake", "version": "7"}
    batcher = Batcher([engine], ROW_SHAPE, metrics.of_model("fake", "7"), lambda: None)
    batcher.start()
    first = await occupy(batcher, engine)
    waiting = submit(batcher, 1)
    await asyncio.sleep(0)
    assert batcher.queue_depth == 1
    engine.open.set()
    answer = (await asyncio.gather(first, waiting))[1]
    await batcher.close()
    assert batcher.queue_depth == 0
    assert answer.queue_s > 0
    assert answer.inference_s > 0
    assert metrics.registry.get_sample_value("zfserve_batch_size_count", labels) == 2
    assert metrics.registry.get_sample_value("zfserve_inference_seconds_count", labels) == 2
