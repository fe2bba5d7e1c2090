"""Counts the calls under way, and refuses those that come once it is closed. Used by `intercepting_server`."""

import asyncio

from zfserve_runtime.errors import ShuttingDown
from zfserve_runtime.grpc.in_flight import InFlight

_LINGER_S = 0.2
_LOOKS = 10
"""How long, and how often, to wait for calls that are on their way to a server that refuses them."""


class Gate:
    """Counts the calls that are under way and, once closed, lets no more in."""

    def __init__(self) -> None:
        self._under_way = InFlight()
        self._closed = False
        self._came = False  # to a closed gate, of late

    def enter(self) -> None:
        self._under_way.add(1)

    def check(self) -> None:
        """Raises ShuttingDown where it is closed."""
        if self._closed:
            self._came = True
            raise ShuttingDown("the service is shutting down; try another instance, or again shortly")

    def leave(self) -> None:
        self._under_way.add(-1)

    def close(self) -> None:
        self._closed = True
        self._came = self._under_way.count > 0  # where some are served others may be on their way

    async def quiet(self) -> None:
        for _ in range(_LOOKS):
            await self._under_way.ended()
            if not self._came:
                return
            self._came = False
            await asyncio.sleep(_LINGER_S)
