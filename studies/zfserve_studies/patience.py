"""Repeats calls while a server restarts or is busy, so that a study goes on by itself.

The client repeats a call three times, within seconds. A restart may take minutes, and a stream that has begun is not
repeated by the client at all.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from zfserve.errors import Cancelled, Overloaded, Unavailable, ZfserveError

_Result = TypeVar("_Result")

LONGEST_S = 300.0
"""A server that does not answer for longer than this is given up, in seconds. A compilation may take minutes."""

SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.5, 5.0

WORKER_UNAVAILABLE = "WORKER_UNAVAILABLE"
"""The server's reason, if it has no worker. It may run without one forever."""


class Patience:
    """Calls a service again while it is away or busy.

    Args:
        report: gets one sentence each time that the service has gone away.
        longest_s: the longest time without an answer, in seconds.
        clock: returns a time in seconds that never goes back.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        report: Callable[[str], None],
        longest_s: float = LONGEST_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._report = report
        self._longest_s = longest_s
        self._clock = clock
        self._sleep = sleep

    def call(self, work: Callable[[], _Result]) -> _Result:
        """Returns the result of `work`. Calls it again from the start while the service is away or busy.

        A server without a worker is not waited for: its error is raised at once.

        Args:
            work: calls the service, reads all that it answers, and leaves nothing behind if it fails.

        Raises:
            ZfserveError: the call failed in another way, or the service stayed away.
        """
        began: float | None = None
        wait_s = SHORTEST_WAIT_S
        while True:
            try:
                return work()
            except (Unavailable, Overloaded, Cancelled) as error:
                now = self._clock()
                if began is None:
                    began = now
                    self._tell(error)
                if error.reason == WORKER_UNAVAILABLE or now - began >= self._longest_s:
                    raise
                self._sleep(min(max(wait_s, error.retry_after_s or 0), LONGEST_WAIT_S))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _tell(self, error: ZfserveError) -> None:
        if error.reason != WORKER_UNAVAILABLE and not isinstance(error, Overloaded):
            self._report("the server went away; the study goes on when it is back")
