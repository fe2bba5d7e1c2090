"""Adaptive throttling: a client of which most calls are refused keeps part of them back, and refuses those itself.

A refusal costs a busy server time as well, which its answers then lack, and only its clients can spare it that. Source:
Beyer et al., Site Reliability Engineering, chapter 21, "Client-Side Throttling". Used by both clients.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from zfserve.errors import Overloaded

SENT_FOR_EACH_TAKEN = 2.0
"""The chapter's K. More calls are sent than are taken on of late, so that a service that takes on more is noticed."""

FREE = 10.0
"""Calls within `MEMORY_S` that are sent whatever becomes of them."""

MEMORY_S = 5.0
"""What happened so long ago counts for 1/e."""

THROTTLED = "THROTTLED"
"""The reason of the error."""


class Throttle:
    """Of one client's calls to one method of one model. Safe to share between threads.

    A call counts from its end on, not from its beginning as in the chapter: this service refuses at once, so most of
    those under way are taken on.

    Args:
        free: see `FREE`; infinite for a throttle that keeps nothing back.
        clock: seconds, monotonic.
        chance: uniform in [0, 1).
    """

    def __init__(
        self,
        free: float = FREE,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._free = free
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._counted_s = clock()
        self._wanted = 0.0  # calls of late, sent or kept back
        self._taken = 0.0  # of those
        self._retry_after_s: float | None = None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around a call: `check`, then `hearing`."""
        self.check()
        with self.hearing():
            yield

    def check(self) -> None:
        """Before a call. Raises Overloaded where it is kept back."""
        with self._lock:
            self._forget()
            excess = self._wanted - SENT_FOR_EACH_TAKEN * self._taken - self._free
            if self._chance() * self._wanted >= excess:
                return
            self._wanted += 1
        raise Overloaded(
            "the service refused most of this client's calls of late, so this one was not sent; send fewer",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            reason=THROTTLED,
            retry_after_s=self._retry_after_s,
        )

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Around the wait for what becomes of a call. It was taken on unless that is Overloaded."""
        taken = 1
        try:
            yield
        except Overloaded as refusal:
            taken = 0
            self._retry_after_s = refusal.retry_after_s
            raise
        finally:
            with self._lock:
                self._forget()
                self._wanted += 1
                self._taken += taken

    def _forget(self) -> None:
        now_s = self._clock()
        kept = math.exp((self._counted_s - now_s) / MEMORY_S)
        self._counted_s = now_s
        self._wanted *= kept
        self._taken *= kept
