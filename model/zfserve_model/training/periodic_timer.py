"""A periodic timer tells when an action is due again. The loop, its progress and `zfserve train` use it."""

import time
from collections.abc import Callable


class PeriodicTimer:
    """Tells once every `seconds` that an action is due. The caller polls it.

    Args:
        seconds: the period.
        at_once: True if the action is due now for the first time, False if it is due after the first period.
        clock: returns monotonic seconds.
    """

    def __init__(self, seconds: float, *, at_once: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last_s = None if at_once else clock()

    def is_due(self) -> bool:
        """Returns True if the action is due, and then begins the next period."""
        now = self._clock()
        if self._last_s is not None and now - self._last_s < self._seconds:
            return False
        self._last_s = now
        return True
