"""The fair queue holds the images that no engine has taken yet and decides their order. Used by the batcher.

The event loop adds images and the engine threads take them. Adding appends to a deque, whose single operations are
atomic, and puts a token into a wake-up queue. The threads do the ordering, under a lock that the event loop takes only
to remove an image and to close the queue. With one lock around both ends and a Condition to wait on, the event loop
would wait for a thread just when it has results to deliver.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple

from zfserve_server.admission.caller_identity import Priority
from zfserve_server.batching.fair_scheduler import E, FairScheduler

INTERACTIVE_MEMORY_S = 1.0
"""Seconds after the last interactive image in which another one is expected."""


class BatchLimits(NamedTuple):
    """Says how many entries a batch may have.

    Attributes:
        entries: the largest number of entries.
        bulk: the largest number of bulk entries while interactive entries come.
    """

    entries: int
    bulk: int


class FairQueue(Generic[E]):
    """Puts a FairScheduler between the event loop (`add`, `remove`, `close`) and the engine threads (`take_batch`)."""

    def __init__(self) -> None:
        self._arrived: deque[E] = deque()
        self._scheduler = FairScheduler[E]()
        self._scheduler_lock = threading.Lock()
        self._wakeups: SimpleQueue[None] = SimpleQueue()  # one for each entry, and one for each thread at the end
        self._interactive_until = 0.0  # time.monotonic()
        self._closed = False

    def __len__(self) -> int:
        return len(self._arrived) + len(self._scheduler)

    @property
    def readings(self) -> int:
        """The number of entries for reading engines that have been put in order."""
        return self._scheduler.readings

    def add(self, entry: E) -> None:
        self._arrived.append(entry)
        self._wakeups.put(None)

    def remove(self, entry: E) -> bool:
        """Removes `entry`. Returns False if an engine has taken it."""
        with self._scheduler_lock:
            self._schedule_arrived()
            return self._scheduler.remove(entry)

    def close(self, threads: int) -> list[E]:
        """Closes the queue, so that `take_batch` returns no more entries. Returns the entries that were left.

        Args:
            threads: the number of threads that call `take_batch`. Each of them is woken.
        """
        self._closed = True
        left = []
        while (entry := self._pop()) is not None:
            left.append(entry)
        for _ in range(threads):
            self._wakeups.put(None)
        return left

    def take_batch(self, limits: Callable[[E], BatchLimits], is_live: Callable[[E], bool]) -> list[E]:
        """Blocks until there are entries, then takes those of one batch. Returns [] once the queue is closed.

        All entries of a batch are run by the same engine. A batch has few bulk entries while interactive entries come,
        because an interactive entry waits for the batch that runs.

        Args:
            limits: returns the limits of a batch that begins with this entry.
            is_live: returns False for an entry to drop.
        """
        while True:
            self._drain_wakeups()
            batch = self._gather(limits, is_live)
            if len(self) or self._closed:
                self._wakeups.put(None)  # another thread may have needed one of the drained wake-ups
            if batch or self._closed:
                return batch
            self._wakeups.get()

    def _gather(self, limits: Callable[[E], BatchLimits], is_live: Callable[[E], bool]) -> list[E]:
        """Takes the entries of one batch, without waiting for any."""
        first = self._pop()
        while first is not None and not is_live(first):
            first = self._pop()
        if first is None:
            return []
        batch, limit = [first], limits(first)
        bulk = int(first.caller.priority is Priority.BULK)
        # A batch that an interactive entry begins is not filled with bulk entries, except with one that is due.
        max_bulk = limit.bulk if self._interactive_comes else limit.entries
        begun_by_bulk = bool(bulk)
        while len(batch) < limit.entries:
            entry = self._pop_like(first, begun_by_bulk and bulk < max_bulk)
            if entry is None:
                break
            if is_live(entry):
                batch.append(entry)
                bulk += entry.caller.priority is Priority.BULK
        return batch

    @property
    def _interactive_comes(self) -> bool:
        """True while an interactive entry waits, or came a short time ago."""
        return self._scheduler.interactive_waits or time.monotonic() < self._interactive_until

    def _pop(self) -> E | None:
        with self._scheduler_lock:
            self._schedule_arrived()
            return self._scheduler.pop()

    def _pop_like(self, first: E, bulk_too: bool) -> E | None:
        with self._scheduler_lock:
            self._schedule_arrived()
            return self._scheduler.pop_like(first, bulk_too)

    def _schedule_arrived(self) -> None:
        while self._arrived:  # only the holder of the lock takes from this deque
            entry = self._arrived.popleft()
            self._scheduler.add(entry)
            if entry.caller.priority is Priority.INTERACTIVE:
                self._interactive_until = time.monotonic() + INTERACTIVE_MEMORY_S

    def _drain_wakeups(self) -> None:
        """Discards the pending wake-ups before the queue is read. They would pile up while no engine is idle."""
        # Tests first: an exception costs a lone request 0.1 ms, even when it is caught.
        with suppress(Empty):
            while not self._wakeups.empty():
                self._wakeups.get_nowait()
