"""Work that may never end, in a thread that does not keep the process. Used where engines are opened."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_in_daemon(work: Callable[[], T], name: str, discard: Callable[[T], object]) -> "asyncio.Future[T]":
    """What `work` returns, or raises, in a daemon thread: one that hears of nothing must not hold up the process.

    Args:
        discard: takes what `work` returns after the future was cancelled.
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
