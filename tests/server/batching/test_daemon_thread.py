"""The result of the work reaches the future, or is discarded if the future was cancelled."""

import asyncio
import threading

import pytest
from zfserve_server.batching.daemon_thread import run_in_daemon_thread


async def test_the_future_gets_the_result_or_the_exception() -> None:
    discarded: list[int] = []
    assert await run_in_daemon_thread(lambda: 7, "work", discarded.append) == 7
    with pytest.raises(ZeroDivisionError):
        await run_in_daemon_thread(lambda: 1 // 0, "work", discarded.append)
    assert discarded == []


async def test_a_result_after_the_cancel_is_discarded() -> None:
    go, was_discarded = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    discarded: list[int] = []

    def work() -> int:
        assert threading.current_thread().daemon
        assert go.wait(timeout=30)
        return 7

    def discard(result: int) -> None:
        discarded.append(result)
        loop.call_soon_threadsafe(was_discarded.set)

    waiting = run_in_daemon_thread(work, "work", discard)
    waiting.cancel()
    await asyncio.sleep(0)  # lets the cancel reach the future of the thread
    go.set()
    await was_discarded.wait()
    assert discarded == [7]
