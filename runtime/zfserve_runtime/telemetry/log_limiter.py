"""Limits the log lines about refused calls: the first in each second get a line each, and one line counts the others.

Under overload hundreds of calls a second are refused, and there is no time to log each: a line takes a quarter of the
time of a refusal. `interceptor` uses it. The metrics count every refused call.
"""

import asyncio
import logging
from contextvars import Context

LINES_PER_INTERVAL = 10

INTERVAL_S = 1.0

_log = logging.getLogger(__name__)


class LogLimiter:
    """Decides which refused calls are logged. Only the event loop's thread may use it."""

    def __init__(self) -> None:
        self._lines = self._skipped = 0

    def allow_line(self) -> bool:
        """Returns True if the next refused call may have its own line. Otherwise counts it for the summary."""
        if not self._lines:
            # The context is empty, because the summary belongs to no call.
            asyncio.get_running_loop().call_later(INTERVAL_S, self._summarise, context=Context())
        if self._lines == LINES_PER_INTERVAL:
            self._skipped += 1
            return False
        self._lines += 1
        return True

    def _summarise(self) -> None:
        if self._skipped:
            _log.info("refused more calls", extra={"calls": self._skipped})
        self._lines = self._skipped = 0
