"""The fair scheduler decides the order of the images that wait: interactive before bulk, clients in turn.

`fair_queue` puts it between the event loop and the engine threads.
"""

from collections import Counter, deque
from typing import Generic, Protocol, TypeVar

from zfserve_server.admission.caller_identity import CallerIdentity, Priority

BULK_EVERY = 8
"""While bulk images wait, at least one of this many images is bulk."""


class Queueable(Protocol):
    """Anything that has a caller and an engine can be queued."""

    @property
    def caller(self) -> CallerIdentity: ...

    @property
    def reading(self) -> object:
        """The reading engine that must run the entry, which is a bulk entry then. None: the engine that serves."""


E = TypeVar("E", bound=Queueable)


class FairScheduler(Generic[E]):
    """Decides which entry is next. Not thread-safe.

    Interactive entries precede bulk entries. While bulk waits, at least one of `BULK_EVERY` entries is bulk: after
    `BULK_EVERY - 1` interactive entries bulk is due. A batch of several bulk entries pays for as many turns in advance.
    Within a priority the clients take turns, one image each, oldest first. A client's own entries for different engines
    take turns too.
    """

    def __init__(self) -> None:
        self._interactive = _RoundRobin[E]()
        self._bulk = _RoundRobin[E]()
        self._interactive_taken = 0
        """The interactive entries taken while bulk waited, less `BULK_EVERY - 1` for each bulk entry."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def interactive_waits(self) -> bool:
        """True while an interactive entry waits."""
        return bool(self._interactive)

    @property
    def readings(self) -> int:
        """The number of entries for reading engines. All of them are bulk entries."""
        return self._bulk.readings

    def add(self, entry: E) -> None:
        self._round_of(entry).add(entry)
        self._length += 1

    def pop(self) -> E | None:
        """Removes and returns the next entry, or returns None if there is none."""
        if not self._length:
            return None
        if self._bulk and (not self._interactive or self._bulk_is_due):
            return self._pop_bulk()
        return self._pop_interactive()

    def pop_like(self, first: E, bulk_too: bool) -> E | None:
        """Removes and returns the next entry that may share a batch with `first`, or returns None if there is none.

        Args:
            first: the first entry of the batch. Entries of one batch are run by the same engine.
            bulk_too: True lets bulk entries fill the batch. False lets a bulk entry in only if it is due.
        """
        if first.reading is not None:
            return self._pop_bulk(first) if bulk_too else None
        if self._interactive and not (self._bulk_is_due and self._bulk.has(first.reading)):
            return self._pop_interactive()
        if self._bulk.has(first.reading) and (bulk_too or (self._interactive and self._bulk_is_due)):
            return self._pop_bulk(first)
        return None

    def remove(self, entry: E) -> bool:
        """Removes `entry`. Returns False if it was not there."""
        removed = self._round_of(entry).remove(entry)
        self._length -= removed
        return removed

    @property
    def _bulk_is_due(self) -> bool:
        return self._interactive_taken >= BULK_EVERY - 1

    def _pop_interactive(self) -> E:
        self._length -= 1
        self._interactive_taken = self._interactive_taken + 1 if self._bulk else 0
        return self._interactive.pop()

    def _pop_bulk(self, like: E | None = None) -> E | None:
        entry = self._bulk.pop() if like is None else self._bulk.pop_of(like.reading)
        if entry is not None:
            self._length -= 1
            # Bulk that is taken while nothing else waits is not paid for.
            self._interactive_taken = self._interactive_taken - (BULK_EVERY - 1) if self._interactive else 0
        return entry

    def _round_of(self, entry: E) -> "_RoundRobin[E]":
        return self._bulk if entry.caller.priority is Priority.BULK else self._interactive


class _RoundRobin(Generic[E]):
    """Lets the clients take turns. Each entry is one image, so equal turns are equal work."""

    def __init__(self) -> None:
        # By client and by engine, each in the order of their turns. No dict and no deque is empty.
        self._entries: dict[str, dict[object, deque[E]]] = {}
        self._waiting: Counter[object] = Counter()  # by engine; no number is 0
        self.readings = 0  # entries for reading engines

    def __bool__(self) -> bool:
        return bool(self._entries)

    def has(self, reading: object) -> bool:
        """Returns True if an entry for that engine waits."""
        return reading in self._waiting

    def add(self, entry: E) -> None:
        self._entries.setdefault(entry.caller.client, {}).setdefault(entry.reading, deque()).append(entry)
        self._count(entry.reading, 1)

    def pop(self) -> E:
        """Removes and returns the next entry. There must be one."""
        client = next(iter(self._entries))
        return self._take(client, next(iter(self._entries[client])))

    def pop_of(self, reading: object) -> E | None:
        """Removes and returns the next entry for that engine, or returns None if there is none."""
        if not self.has(reading):
            return None
        return self._take(next(client for client, queues in self._entries.items() if reading in queues), reading)

    def remove(self, entry: E) -> bool:
        queues = self._entries.get(entry.caller.client, {})
        entries = queues.get(entry.reading, deque())
        # Tests first: the error of `deque.remove` would format the entry with all its pixels, which takes 0.2 ms.
        if entry not in entries:
            return False
        entries.remove(entry)
        self._count(entry.reading, -1)
        if not entries:
            del queues[entry.reading]
        if not queues:
            del self._entries[entry.caller.client]
        return True

    def _take(self, client: str, reading: object) -> E:
        """Removes and returns an entry, and puts its client and its engine behind the others."""
        queues = self._entries.pop(client)
        entries = queues.pop(reading)
        entry = entries.popleft()
        self._count(reading, -1)
        if entries:
            queues[reading] = entries
        if queues:
            self._entries[client] = queues
        return entry

    def _count(self, reading: object, change: int) -> None:
        if reading is not None:
            self.readings += change
        self._waiting[reading] += change
        if not self._waiting[reading]:
            del self._waiting[reading]  # an engine that is closed must not be kept
