"""Admission: the first step of a request. It never waits; what does not fit is refused at once.

Everything that costs memory or time (decoding, queueing, the engine, the worker) lies behind it, so its limit bounds
them all. Called by the service for every Classify and Project.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zfserve_runtime.errors import Overloaded

_SMOOTHING = 0.1
"""Weight of the newest request in the running mean of the service time."""


class Admission:
    """Bounds the requests that are accepted and not yet answered.

    Args:
        limit: how many.
        service_s: seconds the service takes for one request at full load; a first guess, then measured.
        clock: monotonic seconds.
    """

    def __init__(self, limit: int, service_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._service_s = service_s
        self._clock = clock
        self._accepted = 0

    @property
    def accepted(self) -> int:
        """Requests accepted and not yet answered."""
        return self._accepted

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place until the request is answered.

        Raises:
            Overloaded: every place is taken; says when those ahead will be done.
        """
        if self._accepted >= self._limit:
            retry_after_s = self._accepted * self._service_s
            raise Overloaded(
                f"{self._accepted} requests are waiting already; try again in {retry_after_s:.2g} s",
                retry_after_s=retry_after_s,
            )
        began = self._clock()
        self._accepted += 1
        ahead = self._accepted  # this one included: what was answered before it was
        try:
            yield
            self._service_s += _SMOOTHING * ((self._clock() - began) / ahead - self._service_s)
        finally:
            self._accepted -= 1
