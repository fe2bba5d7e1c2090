"""Keeps the reading engines of one version: opens them when a study needs them, shares them and closes idle ones.

A `ServedModel` has one. The studies use it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.readings.plan import ReadingEngine, ReadingPlan
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineFailed, ServiceError, ShuttingDown

from zfserve_server.batching.daemon_thread import run_in_daemon_thread

logger = logging.getLogger(__name__)

MAX_OPEN = 2
"""The largest number of reading engines that a version has open. Each holds the weights once more."""

IDLE_S = 60.0
"""An engine that no study has used for this many seconds is closed."""

OPEN_TIMEOUT_S = 120.0
"""The seconds that an engine may take to open. It usually takes far less."""

OpenReading = Callable[[ReadingPlan], ReadingEngine]
"""Opens an engine; blocks. Raises EngineUnavailable, BundleError or a ServiceError."""


@dataclass(eq=False)
class _Slot:
    """Holds one engine, or its opening.

    Attributes:
        opening: gives the engine, or the ServiceError that says why it cannot be opened.
        users: the number of studies that use the engine or wait for it.
        idle: closes the engine once it was idle for long enough. None while it is used.
    """

    opening: "asyncio.Task[ReadingEngine]"
    users: int = 0
    idle: asyncio.TimerHandle | None = None

    @property
    def unusable(self) -> bool:
        """True for an engine that cannot be opened, and for one that was closed because it hung."""
        return self.opening.done() and (self.opening.exception() is not None or self.opening.result().closed)


class ReadingEngines:
    """Lends reading engines. Use it on the event loop only.

    Args:
        open_engine: opens an engine for a plan. It runs in a thread.
        idle_s: the seconds after which an engine that nobody uses is closed.
    """

    def __init__(self, open_engine: OpenReading, idle_s: float = IDLE_S) -> None:
        self._open_engine = open_engine
        self._idle_s = idle_s
        self._slots: dict[ReadingPlan, _Slot] = {}  # the engine that was taken last stands last
        self._ending: set[asyncio.Task[object]] = set()
        self._changed = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def use(self, plan: ReadingPlan) -> AsyncIterator[ReadingEngine]:
        """Lends the engine for `plan` while the block runs. Opens it if it is not open.

        Callers with the same plan share one engine and one opening. If `MAX_OPEN` engines with other plans are in use,
        the call waits until one of them is free. Await every image that was submitted to the engine, or cancel it,
        before the block ends.

        Raises:
            ServiceError: the engine cannot be opened, or the version is being closed.
        """
        slot = await self._take(plan)
        try:
            # The shield keeps the opening for others if this caller is cancelled.
            yield await asyncio.shield(slot.opening)
        finally:
            self._give_back(plan, slot)

    async def close(self) -> None:
        """Closes every engine, and refuses later uses. No caller may use an engine any more."""
        self._closed = True
        for plan in list(self._slots):
            self._drop(plan)
        self._changed.set()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _take(self, plan: ReadingPlan) -> _Slot:
        """Returns the slot of `plan` with one more user. Begins to open an engine if there is none."""
        while not self._closed and not self._make_room(plan):
            self._changed.clear()
            await self._changed.wait()
        if self._closed:
            raise ShuttingDown("this version of the model is being closed; try again")
        slot = self._slots.pop(plan, None) or _Slot(asyncio.create_task(self._open(plan)))
        self._slots[plan] = slot
        slot.users += 1
        if slot.idle is not None:
            slot.idle.cancel()
            slot.idle = None
        return slot

    def _make_room(self, plan: ReadingPlan) -> bool:
        """Returns True if `plan` has an engine or may open one. Closes the engine that was idle longest, if need be."""
        if plan in self._slots and self._slots[plan].unusable:
            self._drop(plan)
        if plan in self._slots or len(self._slots) < MAX_OPEN:
            return True
        idle = next((other for other, slot in self._slots.items() if not slot.users), None)
        if idle is not None:
            self._drop(idle)
        return idle is not None

    async def _open(self, plan: ReadingPlan) -> ReadingEngine:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                return await run_in_daemon_thread(
                    lambda: self._open_engine(plan), "opening readings", lambda late: late.close()
                )
        except ServiceError:
            raise
        except TimeoutError as error:
            logger.error("a reading engine did not open in time")  # noqa: TRY400  (a traceback says no more)
            raise EngineFailed("the engine that reads layers did not open in time; try again later") from error
        except (EngineUnavailable, BundleError) as error:
            logger.warning("a reading engine cannot be opened: %s", error)
            raise EngineFailed(f"the engine that reads layers cannot be opened: {error}") from error
        except Exception as error:
            logger.exception("a reading engine cannot be opened")
            raise EngineFailed("the engine that reads layers cannot be opened; the server's log says why") from error

    def _give_back(self, plan: ReadingPlan, slot: _Slot) -> None:
        slot.users -= 1
        if not slot.users and self._slots.get(plan) is slot:
            slot.idle = asyncio.get_running_loop().call_later(self._idle_s, self._drop, plan)
        self._changed.set()

    def _drop(self, plan: ReadingPlan) -> None:
        """Closes the engine of `plan`, or ends its opening."""
        slot = self._slots.pop(plan)
        if slot.idle is not None:
            slot.idle.cancel()
        ending: asyncio.Task[object] = slot.opening
        if not slot.opening.done():
            slot.opening.cancel()
        elif slot.opening.exception() is None:
            # Freeing the weights takes milliseconds.
            ending = asyncio.create_task(asyncio.to_thread(slot.opening.result().close))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
