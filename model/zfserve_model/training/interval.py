"""When something that is done now and then is due again; used by the loop, its progress and `zfserve train`."""

import time
from collections.abc import Callable


class Interval:
    """Due once every `seconds`.

    Args:
        at_once: due for the first time now, not after the first interval.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, *, at_once: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last_s = None if at_once else clock()

    def is_over(self) -> bool:
        """Whether it is due; then the next interval begins."""
        now = self._clock()
        if self._last_s is not None and now - self._last_s < self._seconds:
            return False
        self._last_s = now
        return True
