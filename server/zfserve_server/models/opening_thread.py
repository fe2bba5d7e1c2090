"""The thread in which a version is opened, which takes seconds or minutes and may have to be left behind.

Used by `model_loader`.
"""

import asyncio
import threading
from collections.abc import Callable

from zfserve_engines.catalogue import Report, Step

from zfserve_server.batching.daemon_thread import run_in_daemon
from zfserve_server.models.source import OpenedVersion

Open = Callable[[Report], OpenedVersion]


class OpeningCancelled(BaseException):
    """The process shall stop; raised at the next report of whoever opens an engine, which has to let it through."""


class StillOpening(Exception):
    """The process shall stop, and the thread that opens an engine does not hear of it."""


class OpeningThread:
    """Opens one engine at a time. Use from the event loop's thread only."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._opening: asyncio.Future[OpenedVersion] | None = None

    async def run(self, open_version: Open, on_step: Callable[[Step], None]) -> OpenedVersion:
        """What `open_version` returns; whatever it raises passes through.

        Args:
            on_step: called on the event loop with every step that is reported.
        """
        # Not awaited itself: cancelling this call must not make the future forget what the thread gives it.
        self._opening = self._start(open_version, on_step)
        await asyncio.wait((self._opening,))
        opened, self._opening = self._opening, None
        return opened.result()

    def cancel(self) -> None:
        """Let an opening that is under way end at its next report."""
        self._cancelled.set()

    async def conclude(self, grace_s: float) -> None:
        """Cancel, and leave nothing behind of an opening that nobody waits for any more.

        Raises:
            StillOpening: it did not end within `grace_s`; the process must not wait for it.
        """
        self.cancel()
        if self._opening is None:
            return
        await asyncio.wait((self._opening,), timeout=grace_s)
        if not self._opening.done():
            self._opening.add_done_callback(asyncio.Future.exception)  # whatever becomes of it is looked at by nobody
            raise StillOpening
        if self._opening.exception() is None:
            self._opening.result().close()

    def _start(self, open_version: Open, on_step: Callable[[Step], None]) -> "asyncio.Future[OpenedVersion]":
        loop = asyncio.get_running_loop()

        def report(step: Step) -> None:
            if self._cancelled.is_set():
                raise OpeningCancelled
            loop.call_soon_threadsafe(on_step, step)

        return run_in_daemon(lambda: open_version(report), "opening", OpenedVersion.close)
