"""The log of an overloaded server: a line for each of the first calls refused in a second, and a count of the others.

Refusals come by the hundred just when there is no time to write of each, which would take a quarter of what it costs to
refuse. Used by `interceptor`; the metrics count them all.
"""

import asyncio
import logging
from contextvars import Context

LINES = 10
"""Of refusals, in a second."""

SECOND = 1.0

_log = logging.getLogger(__name__)


class LogLimiter:
    """Use on the event loop."""

    def __init__(self) -> None:
        self._lines = self._more = 0

    def has_room(self) -> bool:
        """Whether one more refusal may have a line of its own; where not, it is counted."""
        if not self._lines:
            asyncio.get_running_loop().call_later(SECOND, self._sum_up, context=Context())  # of no call
        if self._lines == LINES:
            self._more += 1
            return False
        self._lines += 1
        return True

    def _sum_up(self) -> None:
        if self._more:
            _log.info("refused more calls", extra={"calls": self._more})
        self._lines = self._more = 0
