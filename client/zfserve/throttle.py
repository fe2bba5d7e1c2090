"""Throttles a client: while the service refuses most of its calls, the client does not send some of them.

A busy server has less time for its answers if it must also refuse calls. Only its clients can prevent that, by sending
fewer calls. Both clients use this module. Source: Beyer et al., Site Reliability Engineering, chapter 21, "Client-Side
Throttling".
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from zfserve.errors import Overloaded

ACCEPTS_MULTIPLIER = 2.0
"""The chapter calls this number K. The client sends this many times the calls that the service accepted recently, so
that it notices when the service accepts more calls again."""

ALLOWANCE = 10.0
"""This many recent calls are always sent, even if the service refuses all of them."""

MEMORY_S = 5.0
"""A call that ended this many seconds ago counts as 1/e of a call."""

THROTTLED = "THROTTLED"
"""This is the `reason` of the error for a call that was not sent."""


class Throttle:
    """Limits one client's calls of one method of one model. It is safe to share between threads.

    In the chapter a call counts as soon as it is sent. Here it counts when it has ended, because this service refuses
    at once: it has accepted most of the calls that are in flight.

    Args:
        allowance: see `ALLOWANCE`. An infinite allowance sends every call.
        clock: returns seconds of a monotonic clock.
        chance: returns a uniform number in [0, 1).
    """

    def __init__(
        self,
        allowance: float = ALLOWANCE,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._allowance = allowance
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._decayed_s = clock()
        self._requests = 0.0  # recent calls, sent or not
        self._accepts = 0.0  # recent calls that the service accepted
        self._retry_after_s: float | None = None

    @contextmanager
    def limit(self) -> Iterator[None]:
        """Surrounds one call: checks that it may be sent, then records its outcome.

        Raises:
            Overloaded: the call must not be sent.
        """
        self.check()
        with self.record():
            yield

    def check(self) -> None:
        """Checks that the next call may be sent.

        Raises:
            Overloaded: the call must not be sent.
        """
        with self._lock:
            self._decay()
            excess = self._requests - ACCEPTS_MULTIPLIER * self._accepts - self._allowance
            if self._chance() * self._requests >= excess:
                return
            self._requests += 1
        raise Overloaded(
            "the service refused most of this client's recent calls, so the client did not send this one; send fewer",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            reason=THROTTLED,
            retry_after_s=self._retry_after_s,
        )

    @contextmanager
    def record(self) -> Iterator[None]:
        """Surrounds the wait for a call. The service accepted the call unless the body raises Overloaded."""
        accepted = 1
        try:
            yield
        except Overloaded as refusal:
            accepted = 0
            self._retry_after_s = refusal.retry_after_s
            raise
        finally:
            with self._lock:
                self._decay()
                self._requests += 1
                self._accepts += accepted

    def _decay(self) -> None:
        now_s = self._clock()
        kept = math.exp((self._decayed_s - now_s) / MEMORY_S)
        self._decayed_s = now_s
        self._requests *= kept
        self._accepts *= kept
