"""The watchdog notices an engine whose run does not end, and replaces it with a new one. Built by the batcher."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from zfserve_engines.contract import Engine

from zfserve_server.batching.daemon_thread import run_in_daemon_thread
from zfserve_server.batching.engine_thread import EngineThread

logger = logging.getLogger(__name__)

REOPEN_TIMEOUT_S = 120.0
"""Seconds that opening a new engine may take. It usually takes far less."""

MAX_HUNG_ENGINES = 3
"""The largest number of engines that may hang at the same time. Each of them keeps its memory and perhaps a CPU; a new
process frees both."""


@dataclass(frozen=True)
class WatchdogPolicy:
    """Says what to do about an engine that hangs.

    Attributes:
        timeout_s: the longest time that one run may take.
        reopen: opens another instance of the engine, warm and verified; blocks. None if only a new process helps, as
            on a GPU, which a hung run may occupy for ever.
        on_stall: called on the event loop with True when no working engine is left, and with False when one serves
            again.
    """

    timeout_s: float
    reopen: Callable[[], Engine] | None = None
    on_stall: Callable[[bool], None] = lambda stalled: None


class Watchdog:
    """Replaces hung engines. Use from the event loop's thread only.

    Args:
        policy: the timeout of a run, and how to open a new engine.
        threads: the running engine threads. The watchdog removes hung ones and appends new ones.
        new_thread: makes the thread of a new engine.
        give_up: called once, if a new engine would not help or cannot be opened.
    """

    def __init__(
        self,
        policy: WatchdogPolicy,
        threads: list[EngineThread],
        new_thread: Callable[[Engine], EngineThread],
        give_up: Callable[[], None],
    ) -> None:
        self._policy = policy
        self._threads = threads
        self._new_thread = new_thread
        self._give_up = give_up
        self._hung: list[EngineThread] = []
        self._replacements: list[EngineThread] = []
        self._stalled_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._replacing: set[asyncio.Task[None]] = set()

    @property
    def stalled_s(self) -> float:
        """Seconds since the last engine began the run that hangs; 0 while an engine works."""
        return 0.0 if self._stalled_at is None else time.monotonic() - self._stalled_at

    def start(self) -> None:
        # One timer for all requests. It fires when the oldest run reaches its timeout.
        oldest_s = max((thread.running_s for thread in self._threads), default=0.0)
        self._timer = asyncio.get_running_loop().call_later(self._policy.timeout_s - oldest_s, self._check)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._replacing:
            task.cancel()

    def _check(self) -> None:
        for thread in [thread for thread in self._threads if thread.running_s >= self._policy.timeout_s]:
            thread.abandon()
            self._threads.remove(thread)
            self._hung = [*filter(_is_alive, self._hung), thread]
            reopen = self._policy.reopen
            if reopen is None or len(self._hung) > MAX_HUNG_ENGINES or self._hung_on_first_run(thread):
                logger.critical("a new engine would not help", extra={"hung": len(self._hung)})
                self._give_up()
                return
            task = asyncio.create_task(self._replace(reopen))
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)
            if not self._threads:
                self._stalled_at = time.monotonic() - self._policy.timeout_s
                self._policy.on_stall(True)
        self.start()

    def _hung_on_first_run(self, thread: EngineThread) -> bool:
        """Returns True for a replacement that hung before it finished any run, unless a study's engine hung in it."""
        return thread in self._replacements and not thread.has_finished_a_run and not thread.reading_hung

    async def _replace(self, reopen: Callable[[], Engine]) -> None:
        try:
            async with asyncio.timeout(REOPEN_TIMEOUT_S):
                engine = await run_in_daemon_thread(reopen, "reopening", lambda late: late.close())
        except Exception:
            logger.exception("no new engine can be opened")
            self._give_up()
            return
        thread = self._new_thread(engine)
        self._replacements = [*filter(_is_alive, self._replacements), thread]
        self._threads.append(thread)
        thread.start()
        logger.warning("a new engine replaces one that hangs")
        if self._stalled_at is not None:
            self._stalled_at = None
            self._policy.on_stall(False)


def _is_alive(thread: EngineThread) -> bool:
    return thread.is_alive
