"""A periodic timer says when to do something again. The loop, its progress and `zfserve train` use it."""

import time
from collections.abc import Callable


class Interval:
    """Is due once every `seconds`.

    Args:
        seconds: the length of the interval.
        at_once: whether it is due now for the first time, or after the first interval.
        clock: returns monotonic seconds.
    """

    def __init__(self, seconds: float, *, at_once: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last_s = None if at_once else clock()

    def is_over(self) -> bool:
        """Returns True where it is due, and then begins the next interval."""
        now = self._clock()
        if self._last_s is not None and now - self._last_s < self._seconds:
            return False
        self._last_s = now
        return True
