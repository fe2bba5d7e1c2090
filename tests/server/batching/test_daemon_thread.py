"""Work in a thread of its own: what becomes of its result, and of one that nobody waits for any more."""

import asyncio
import threading

import pytest
from zfserve_server.batching.daemon_thread import run_in_daemon_thread


async def test_what_the_work_returns_or_raises() -> None:
    discarded: list[int] = []
    assert await run_in_daemon_thread(lambda: 7, "work", discarded.append) == 7
    with pytest.raises(ZeroDivisionError):
        await run_in_daemon_thread(lambda: 1 // 0, "work", discarded.append)
    assert discarded == []


async def test_what_comes_after_the_cancel_is_discarded() -> None:
    go, gone = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    discarded: list[int] = []

    def work() -> int:
        assert threading.current_thread().daemon
        assert go.wait(timeout=30)
        return 7

    def discard(result: int) -> None:
        discarded.append(result)
        loop.call_soon_threadsafe(gone.set)

    waiting = run_in_daemon_thread(work, "work", discard)
    waiting.cancel()
    await asyncio.sleep(0)  # in which the cancel reaches the thread's side
    go.set()
    await gone.wait()
    assert discarded == [7]
