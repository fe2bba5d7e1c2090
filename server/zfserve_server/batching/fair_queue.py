"""The waiting line: images that no engine has taken yet, and the order in which they are taken. Used by the batcher.

The event loop adds to it and the engines' threads take from it. Adding touches a deque, whose single operations are
atomic, and a bell to wait for; putting in order is left to the threads, under a lock that the loop takes only to
withdraw an image and to close. A lock around both ends, and a Condition to wait on, would have the loop wait for a
thread just when it has an answer to deliver.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from zfserve_server.admission.senders import Priority, Sender

BULK_EVERY = 8
"""Of so many images taken in a row while bulk waits, one at least is bulk."""


class Waiting(Protocol):
    """What may stand in the line."""

    @property
    def sender(self) -> Sender: ...


E = TypeVar("E", bound=Waiting)


class Order(Generic[E]):
    """Who is next: interactive before bulk, but of any `BULK_EVERY` taken in a row while bulk waits one at least is
    bulk; and within a priority the clients take turns, an image each, oldest first.

    For one thread at a time.
    """

    def __init__(self) -> None:
        self._interactive = _Turns[E]()
        self._bulk = _Turns[E]()
        self._passed_over = 0  # interactive images taken since bulk began to wait, or had its turn
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, entry: E) -> None:
        self._turns_of(entry).add(entry)
        self._length += 1

    def pop(self) -> E | None:
        """The next, or None where nobody waits."""
        if not self._length:
            return None
        self._length -= 1
        if self._bulk and (not self._interactive or self._passed_over == BULK_EVERY - 1):
            self._passed_over = 0
            return self._bulk.pop()
        self._passed_over = self._passed_over + 1 if self._bulk else 0
        return self._interactive.pop()

    def remove(self, entry: E) -> bool:
        """Whether it waited."""
        waited = self._turns_of(entry).remove(entry)
        self._length -= waited
        return waited

    def _turns_of(self, entry: E) -> "_Turns[E]":
        return self._bulk if entry.sender.priority is Priority.BULK else self._interactive


class _Turns(Generic[E]):
    """Round robin. Every entry is one image, so that equal turns are equal work."""

    def __init__(self) -> None:
        self._entries: dict[str, deque[E]] = {}  # by client, whoever is next first; none is empty

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: E) -> None:
        self._entries.setdefault(entry.sender.client, deque()).append(entry)

    def pop(self) -> E:
        client = next(iter(self._entries))
        entries = self._entries.pop(client)
        entry = entries.popleft()
        if entries:
            self._entries[client] = entries
        return entry

    def remove(self, entry: E) -> bool:
        entries = self._entries.get(entry.sender.client, deque())
        # Looks first: the error of `deque.remove` would spell the entry out, pixels and all, which takes 0.2 ms.
        if entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del self._entries[entry.sender.client]
        return True


class FairQueue(Generic[E]):
    """See the top. `add`, `withdraw` and `close` are for the event loop, `take` is for the engines' threads."""

    def __init__(self) -> None:
        self._arrived: deque[E] = deque()
        self._order = Order[E]()
        self._ordering = threading.Lock()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # rung for every entry, and for every thread to end
        self._closed = False

    def __len__(self) -> int:
        return len(self._arrived) + len(self._order)

    def add(self, entry: E) -> None:
        self._arrived.append(entry)
        self._bell.put(None)

    def withdraw(self, entry: E) -> bool:
        """Take it out, unless an engine has it; whether it waited."""
        with self._ordering:
            self._put_in_order()
            return self._order.remove(entry)

    def close(self, listeners: int) -> list[E]:
        """From now on nothing is taken; so many threads that wait, or will, hear of it. Returns what was left."""
        self._closed = True
        left = []
        while (entry := self._pop()) is not None:
            left.append(entry)
        for _ in range(listeners):
            self._bell.put(None)
        return left

    def take(self, most: int, is_live: Callable[[E], bool]) -> list[E]:
        """Block until somebody waits, then up to `most` of those next in line; [] once the line is closed.

        Args:
            is_live: the others are left out, and do not come back.
        """
        batch: list[E] = []
        while True:
            self._silence()
            while len(batch) < most and (entry := self._pop()) is not None:
                if is_live(entry):
                    batch.append(entry)
            if len(self) or self._closed:
                self._bell.put(None)  # for another thread: the ringing that was silenced may have been for it
            if batch or self._closed:
                return batch
            self._bell.get()

    def _pop(self) -> E | None:
        with self._ordering:
            self._put_in_order()
            return self._order.pop()

    def _put_in_order(self) -> None:
        while self._arrived:  # whoever holds the lock is the only one to take from it
            self._order.add(self._arrived.popleft())

    def _silence(self) -> None:
        """Forget all ringing so far, before the line is looked at: it would pile up while no engine is ever idle."""
        # Looks before it takes, as exceptions, caught or not, would cost a lone request 0.1 ms.
        with suppress(queue.Empty):
            while not self._bell.empty():
                self._bell.get_nowait()
