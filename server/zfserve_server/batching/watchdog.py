"""The watchdog: notices an engine whose run does not end, and puts a fresh one in its place. Built by the batcher."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zfserve_engines.contract import Engine

from zfserve_server.batching.daemon_thread import run_in_daemon
from zfserve_server.batching.engine_thread import EngineThread

logger = logging.getLogger(__name__)

REOPENING_S = 120.0
"""Far longer than an engine that can be opened again takes."""

MOST_HUNG = 3
"""Engines that hang at the same time. Each keeps its memory and, maybe, a processor; a new process has all of both."""


@dataclass(frozen=True)
class WatchdogPolicy:
    """What to do about an engine that hangs.

    Attributes:
        timeout_s: the longest that one run may take.
        reopen: opens one more engine like it, warm and verified; blocks. None where only a new process helps, as on a
            GPU, which a run that hangs may hold for good.
        on_stall: told, on the event loop, when no engine is left that works (True), and when one is again (False).
    """

    timeout_s: float
    reopen: Callable[[], Engine] | None = None
    on_stall: Callable[[bool], None] = lambda stalled: None


class Watchdog:
    """Use from the event loop's thread only.

    Args:
        watched: threads that run, which this changes: a hung one goes, a fresh one comes.
        new_thread: makes the thread of a fresh engine.
        give_up: called once, where a fresh engine does not help or cannot be had.
    """

    def __init__(
        self,
        care: WatchdogPolicy,
        watched: list[EngineThread],
        new_thread: Callable[[Engine], EngineThread],
        give_up: Callable[[], None],
    ) -> None:
        self._care = care
        self._watched = watched
        self._new_thread = new_thread
        self._give_up = give_up
        self._hung: list[EngineThread] = []
        self._fresh: list[EngineThread] = []
        self._stalled_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._replacing: set[asyncio.Task[None]] = set()

    @property
    def stalled_s(self) -> float:
        """For how long no engine has answered; 0 where one works."""
        return 0.0 if self._stalled_at is None else time.monotonic() - self._stalled_at

    def start(self) -> None:
        # One timer, whatever the number of requests: for when the first run under way will have taken too long.
        oldest_s = max((thread.running_s for thread in self._watched), default=0.0)
        self._timer = asyncio.get_running_loop().call_later(self._care.timeout_s - oldest_s, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._replacing:
            task.cancel()

    def _look(self) -> None:
        for thread in [thread for thread in self._watched if thread.running_s >= self._care.timeout_s]:
            thread.abandon()
            self._watched.remove(thread)
            self._hung = [*filter(_is_alive, self._hung), thread]
            if self._care.reopen is None or len(self._hung) > MOST_HUNG or _hung_at_once(thread, self._fresh):
                logger.critical("a fresh engine does not help", extra={"hung": len(self._hung)})
                self._give_up()
                return
            task = asyncio.create_task(self._replace(self._care.reopen))
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)
            if not self._watched:
                self._stalled_at = time.monotonic() - self._care.timeout_s
                self._care.on_stall(True)
        self.start()

    async def _replace(self, reopen: Callable[[], Engine]) -> None:
        try:
            async with asyncio.timeout(REOPENING_S):
                engine = await run_in_daemon(reopen, "reopening", lambda late: late.close())
        except Exception:  # whatever keeps it from opening
            logger.exception("no fresh engine can be had")
            self._give_up()
            return
        thread = self._new_thread(engine)
        self._fresh = [*filter(_is_alive, self._fresh), thread]
        self._watched.append(thread)
        thread.start()
        logger.warning("a fresh engine serves in place of one that hangs")
        if self._stalled_at is not None:
            self._stalled_at = None
            self._care.on_stall(False)


def _is_alive(thread: EngineThread) -> bool:
    return thread.is_alive


def _hung_at_once(thread: EngineThread, fresh: Sequence[EngineThread]) -> bool:
    """Whether it is a fresh engine, and hung before it had answered anything."""
    return thread in fresh and not thread.proven
