"""Counts the calls in flight, and refuses new ones while the server drains. The interceptor reports every call."""

import asyncio

from zfserve_runtime.errors import ShuttingDown
from zfserve_runtime.grpc.in_flight import InFlight

_QUIET_S = 0.2
"""After this many seconds without a new call, no more calls are expected."""

_MAX_WAITS = 10
"""The largest number of waits of `_QUIET_S`, so that a client that keeps calling cannot delay the drain for ever."""


class CallTracker:
    """Counts the calls in flight, refuses new calls, and waits until the server has drained."""

    def __init__(self) -> None:
        self._in_flight = InFlight()
        self._refusing = False
        self._may_arrive = False  # True if more calls may arrive although they will be refused

    def begin(self) -> None:
        """Counts a call that has arrived."""
        self._in_flight.add(1)

    def check_accepting(self) -> None:
        """Raises ShuttingDown if new calls are refused."""
        if self._refusing:
            self._may_arrive = True
            raise ShuttingDown("the service is shutting down; try another instance, or try again shortly")

    def end(self) -> None:
        """Stops counting a call that has ended."""
        self._in_flight.add(-1)

    def refuse_new(self) -> None:
        """Refuses calls from now on."""
        self._refusing = True
        self._may_arrive = self._in_flight.count > 0  # a client that has calls in flight may have sent more

    async def wait_drained(self) -> None:
        """Waits until no call is in flight and no new call arrives. It waits at most two seconds for new calls."""
        for _ in range(_MAX_WAITS):
            await self._in_flight.wait_none()
            if not self._may_arrive:
                return
            self._may_arrive = False
            await asyncio.sleep(_QUIET_S)
