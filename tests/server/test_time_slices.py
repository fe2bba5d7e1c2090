"""The kernel's own word on the threads of this process: their policy, and how long their time slices are."""

import asyncio
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from fakes.clock import Clock
from fakes.serving import MANIFEST, FakeEngine, classify_request, running_server
from fakes.shelf import Shelf
from zfserve_engines.catalogue import EngineName
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server import time_slices
from zfserve_server.time_slices import CALM_S, SLICE_S, TimeSlices
from zfserve_server.worker.supervisor import Supervisor


def slice_s(thread: int) -> float:
    """0 where this kernel does not say."""
    file = Path(f"/proc/self/task/{thread}/sched")
    found = re.search(r"se\.slice\s*:\s*(\d+)", file.read_text()) if file.exists() else None
    return int(found[1]) / 1e9 if found else 0.0


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not slice_s(threading.get_native_id()),
    reason="threads have no slices of their own here",
)


def as_seen(thread: int) -> tuple[int, float]:
    return os.sched_getscheduler(thread), slice_s(thread)


def of_all() -> set[tuple[int, float]]:
    """What there is among this process's threads."""
    seen = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
            seen.add(as_seen(int(task.name)))
    return seen


@contextmanager
def asleep(policy: int | None = None, nice: int = 0) -> Iterator[int]:
    """A thread that does nothing more, once it has that policy and niceness; its id."""
    ready, over = threading.Event(), threading.Event()

    def sleep() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        if policy is not None:
            os.sched_setscheduler(0, policy, os.sched_param(0))
        ready.set()
        over.wait()

    thread = threading.Thread(target=sleep)
    thread.start()
    ready.wait()
    try:
        assert thread.native_id is not None
        yield thread.native_id
    finally:
        over.set()
        thread.join()


@pytest.fixture
async def slices() -> AsyncIterator[TimeSlices]:
    slices = TimeSlices()
    yield slices
    slices.restore()


LONG = (os.SCHED_BATCH, SLICE_S)


async def test_all_threads_and_those_that_they_start_meanwhile(slices: TimeSlices) -> None:
    with asleep() as sleeping:
        before = as_seen(sleeping)
        assert before[0] == os.SCHED_OTHER
        assert of_all() == {before}
        slices.lengthen()
        assert of_all() == {LONG}
        with asleep() as young:
            assert as_seen(young) == LONG
            slices.restore()
            assert of_all() == {before}


async def test_for_as_long_as_calls_are_refused(slices: TimeSlices, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, clock = asyncio.get_running_loop(), Clock()
    monkeypatch.setattr(loop, "time", clock)
    ordinary = of_all()

    async def pass_by(seconds: float) -> None:
        clock.now_s += seconds
        for _ in range(3):
            await asyncio.sleep(0)

    for _ in range(5):
        slices.lengthen()
        await pass_by(0.9 * CALM_S)
        assert of_all() == {LONG}
    await pass_by(2 * CALM_S)
    await pass_by(CALM_S)
    assert of_all() == ordinary
    slices.lengthen()
    assert of_all() == {LONG}


@pytest.mark.parametrize("policy", [os.SCHED_IDLE, os.SCHED_BATCH])
async def test_a_thread_that_was_given_another_policy_keeps_it(slices: TimeSlices, policy: int) -> None:
    with asleep(policy) as given:
        before = as_seen(given)
        assert before[0] == policy
        slices.lengthen()
        assert as_seen(given) == before
        slices.restore()
        assert as_seen(given) == before


async def test_niceness_stays(slices: TimeSlices) -> None:
    with asleep(nice=5) as nice:
        for change in (slices.lengthen, slices.restore):
            change()
            assert os.getpriority(os.PRIO_PROCESS, nice) == 5


async def test_nothing_is_changed_unless_it_is_wanted() -> None:
    before = of_all()
    slices = TimeSlices(wanted=False)
    slices.lengthen()
    assert of_all() == before
    slices.restore()
    assert of_all() == before


@pytest.mark.parametrize(("lacking", "instead"), [("_NUMBERS", None), ("_THREADS", Path("/nowhere"))])
async def test_a_system_without_such_calls_or_that_keeps_its_threads_secret(
    monkeypatch: pytest.MonkeyPatch, lacking: str, instead: object
) -> None:
    before = of_all()
    monkeypatch.setattr(time_slices, lacking, instead)
    slices = TimeSlices()
    slices.lengthen()
    slices.restore()
    assert of_all() == before


async def test_a_process_started_meanwhile_has_ordinary_ones(slices: TimeSlices, tmp_path: Path) -> None:
    """What starts a process is the event loop's thread, and a process inherits what that has."""
    told = tmp_path / "told"
    tell = f"import os; open({str(told)!r}, 'w').write(f'{{os.sched_getscheduler(0)}}\\n')"
    code = f"{tell}; import signal; signal.pause()"
    slices.lengthen()
    supervisor = Supervisor([sys.executable, "-S", "-c", code], Metrics(), before_start=slices.restore)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(30):
        while not (told.exists() and told.read_text().endswith("\n")):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert int(told.read_text()) == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("engine_name", "wanted", "get_long"),
    [("onnx-cpu", True, True), ("onnx-cpu", False, False), ("onnx-cuda", True, False)],
)
async def test_a_server_that_refuses_calls(
    engine: FakeEngine, engine_name: EngineName, wanted: bool, get_long: bool
) -> None:
    """Not for an engine on a GPU, which waits for those that feed it."""
    ordinary, shelf = of_all(), Shelf(engine=engine_name)
    shelf.put(MANIFEST, engine)
    async with running_server(engine, shelf=shelf, max_queue=1, long_slices=wanted) as server:
        engine.open.clear()
        first = asyncio.ensure_future(server.vision.Classify(classify_request(1)))
        await engine.begun()
        assert of_all() == ordinary
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.vision.Classify(classify_request(2))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert of_all() == ({LONG} if get_long else ordinary)
        engine.open.set()
        await first
    assert of_all() == ordinary
