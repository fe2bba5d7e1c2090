"""Limits how many requests a second one client may send. The classification pipeline counts each request here."""

import time
from collections.abc import Callable

from zfserve_runtime.errors import RateExceeded


class RateLimit:
    """A token bucket for each client, stored as the time at which the bucket is full again (GCRA, ITU-T I.371).

    It drops full buckets. So it holds buckets only of clients that called within the time in which a bucket fills.

    Args:
        rate: requests a second that one client may send over a long time; None for no limit.
        burst: requests that one client may send at once; by default the requests of one second, and at least one.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, rate: float | None = None, burst: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = 0.0 if rate is None else 1 / rate
        self._depth_s = 0.0 if rate is None else self._interval_s * max(1.0, burst or rate)
        self._clock = clock
        self._full_at: dict[str, float] = {}  # by client, the least recently used first

    def __len__(self) -> int:
        """Returns the number of buckets that are not full."""
        return len(self._full_at)

    def take(self, client: str) -> None:
        """Takes a token from the client's bucket.

        Raises:
            RateExceeded: the bucket is empty. Nothing is taken then.
        """
        if not self._interval_s:
            return
        now = self._clock()
        full_at = max(now, self._full_at.get(client, now)) + self._interval_s
        # Rounding errors of floating point must not cost the last token.
        if (short_s := full_at - now - self._depth_s) > 1e-9 * self._depth_s:
            raise RateExceeded(
                f"this client sends more than {1 / self._interval_s:.3g} requests a second; "
                f"try again in {short_s:.2g} s",
                retry_after_s=short_s,
            )
        self._full_at.pop(client, None)
        self._full_at[client] = full_at
        while self._full_at[oldest := next(iter(self._full_at))] <= now:
            del self._full_at[oldest]
