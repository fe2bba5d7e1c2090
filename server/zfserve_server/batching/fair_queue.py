"""The fair queue holds the images that no engine has taken yet and decides their order. Used by the batcher.

The event loop adds images and the engine threads take them. Adding appends to a deque, whose single operations are
atomic, and puts a token into a wake-up queue. The threads do the ordering, under a lock that the event loop takes only
to remove an image and to close the queue. With one lock around both ends and a Condition to wait on, the event loop
would wait for a thread just when it has results to deliver.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

from zfserve_server.admission.caller_identity import CallerIdentity, Priority

BULK_EVERY = 8
"""While bulk images wait, at least one of this many images taken in a row is bulk."""


class Queueable(Protocol):
    """Anything that has a caller can be queued."""

    @property
    def caller(self) -> CallerIdentity: ...


E = TypeVar("E", bound=Queueable)


class FairScheduler(Generic[E]):
    """Decides which entry is next. Not thread-safe.

    Interactive entries precede bulk entries. While bulk waits, at least one of any `BULK_EVERY` entries taken in a row
    is bulk. Within a priority the clients take turns, one image each, oldest first.
    """

    def __init__(self) -> None:
        self._interactive = _RoundRobin[E]()
        self._bulk = _RoundRobin[E]()
        self._interactive_in_a_row = 0  # taken while bulk waited, since the last bulk entry
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, entry: E) -> None:
        self._round_of(entry).add(entry)
        self._length += 1

    def pop(self) -> E | None:
        """Removes and returns the next entry, or returns None if there is none."""
        if not self._length:
            return None
        self._length -= 1
        if self._bulk and (not self._interactive or self._interactive_in_a_row == BULK_EVERY - 1):
            self._interactive_in_a_row = 0
            return self._bulk.pop()
        self._interactive_in_a_row = self._interactive_in_a_row + 1 if self._bulk else 0
        return self._interactive.pop()

    def remove(self, entry: E) -> bool:
        """Removes `entry`. Returns False if it was not there."""
        removed = self._round_of(entry).remove(entry)
        self._length -= removed
        return removed

    def _round_of(self, entry: E) -> "_RoundRobin[E]":
        return self._bulk if entry.caller.priority is Priority.BULK else self._interactive


class _RoundRobin(Generic[E]):
    """Lets the clients take turns. Each entry is one image, so equal turns are equal work."""

    def __init__(self) -> None:
        self._entries: dict[str, deque[E]] = {}  # by client, in the order of their turns; no deque is empty

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: E) -> None:
        self._entries.setdefault(entry.caller.client, deque()).append(entry)

    def pop(self) -> E:
        client = next(iter(self._entries))
        entries = self._entries.pop(client)
        entry = entries.popleft()
        if entries:
            self._entries[client] = entries
        return entry

    def remove(self, entry: E) -> bool:
        entries = self._entries.get(entry.caller.client, deque())
        # Tests first: the error of `deque.remove` would format the entry with all its pixels, which takes 0.2 ms.
        if entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del self._entries[entry.caller.client]
        return True


class FairQueue(Generic[E]):
    """Puts a FairScheduler between the event loop (`add`, `remove`, `close`) and the engine threads (`take_batch`)."""

    def __init__(self) -> None:
        self._arrived: deque[E] = deque()
        self._scheduler = FairScheduler[E]()
        self._scheduler_lock = threading.Lock()
        self._wakeups: SimpleQueue[None] = SimpleQueue()  # one for each entry, and one for each thread at the end
        self._closed = False

    def __len__(self) -> int:
        return len(self._arrived) + len(self._scheduler)

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

    def take_batch(self, max_size: int, is_live: Callable[[E], bool]) -> list[E]:
        """Blocks until there are entries, then takes up to `max_size` of them. Returns [] once the queue is closed.

        Args:
            max_size: the largest number of entries to take.
            is_live: returns False for an entry to drop.
        """
        batch: list[E] = []
        while True:
            self._drain_wakeups()
            while len(batch) < max_size and (entry := self._pop()) is not None:
                if is_live(entry):
                    batch.append(entry)
            if len(self) or self._closed:
                self._wakeups.put(None)  # another thread may have needed one of the drained wake-ups
            if batch or self._closed:
                return batch
            self._wakeups.get()

    def _pop(self) -> E | None:
        with self._scheduler_lock:
            self._schedule_arrived()
            return self._scheduler.pop()

    def _schedule_arrived(self) -> None:
        while self._arrived:  # only the holder of the lock takes from this deque
            self._scheduler.add(self._arrived.popleft())

    def _drain_wakeups(self) -> None:
        """Discards the pending wake-ups before the queue is read. They would pile up while no engine is idle."""
        # Tests first: an exception costs a lone request 0.1 ms, even when it is caught.
        with suppress(Empty):
            while not self._wakeups.empty():
                self._wakeups.get_nowait()
