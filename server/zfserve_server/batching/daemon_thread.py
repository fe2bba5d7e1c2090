"""Runs blocking work that may never end in a daemon thread. Used to open engines."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_in_daemon_thread(work: Callable[[], T], name: str, discard: Callable[[T], object]) -> "asyncio.Future[T]":
    """Starts `work` in a daemon thread, which does not keep the process alive. Returns a future of its result.

    Args:
        work: the function to run. Its exception becomes that of the future.
        name: the thread's name.
        discard: receives the result if the future was cancelled before `work` returned.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
        else:
            if outcome.set_running_or_notify_cancel():
                outcome.set_result(result)
            else:
                discard(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(outcome)
