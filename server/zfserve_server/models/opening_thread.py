"""Opens a version's engine in a thread, which takes seconds or minutes. A thread that hangs is left behind.

Used by `loader`.
"""

import asyncio
import threading
from collections.abc import Callable

from zfserve_engines.opening import Report, Step

from zfserve_server.batching.daemon_thread import run_in_daemon_thread
from zfserve_server.models.source import OpenedVersion

Open = Callable[[Report], OpenedVersion]


class OpeningCancelled(BaseException):
    """The process stops. Raised at the next report of the code that opens an engine, which must not catch it."""


class StillOpening(Exception):
    """The process stops, but the thread that opens an engine does not react."""


class OpeningThread:
    """Opens one engine at a time. Use from the event loop's thread only."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._opening: asyncio.Future[OpenedVersion] | None = None

    async def run(self, open_version: Open, on_step: Callable[[Step], None]) -> OpenedVersion:
        """Returns what `open_version` returns. Raises what it raises.

        Args:
            open_version: runs in the thread; gets a function to report its steps.
            on_step: called on the event loop with each reported step.
        """
        # The future itself is not awaited. Cancelling this call would cancel it, and the opened engine would be lost.
        self._opening = self._start(open_version, on_step)
        await asyncio.wait((self._opening,))
        opened, self._opening = self._opening, None
        return opened.result()

    def cancel(self) -> None:
        """Ends the current opening at its next report."""
        self._cancelled.set()

    async def close(self, grace_s: float) -> None:
        """Cancels the current opening, waits for its end, and closes the engine if it was opened nevertheless.

        Raises:
            StillOpening: it did not end within `grace_s` seconds. The process must not wait for it.
        """
        self.cancel()
        if self._opening is None:
            return
        await asyncio.wait((self._opening,), timeout=grace_s)
        if not self._opening.done():
            self._opening.add_done_callback(asyncio.Future.exception)  # marks the exception as seen
            raise StillOpening
        if self._opening.exception() is None:
            self._opening.result().close()

    def _start(self, open_version: Open, on_step: Callable[[Step], None]) -> "asyncio.Future[OpenedVersion]":
        loop = asyncio.get_running_loop()

        def report(step: Step) -> None:
            if self._cancelled.is_set():
                raise OpeningCancelled
            loop.call_soon_threadsafe(on_step, step)

        return run_in_daemon_thread(lambda: open_version(report), "opening", OpenedVersion.close)
