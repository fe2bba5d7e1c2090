"""Counts what is in flight, and waits until nothing is. It counts the calls of a server, and the uses of a model."""

import asyncio


class InFlight:
    """Counts what is in flight. As a context manager it counts one while the block runs.

    Only the event loop's thread may use it.

    Attributes:
        count: the number in flight.
    """

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()

    def add(self, number: int) -> None:
        """Adds `number` to the count. A negative number takes away."""
        self.count += number
        if not self.count:
            self._none.set()

    async def wait_none(self) -> None:
        """Waits until nothing is in flight."""
        while self.count:
            self._none.clear()
            await self._none.wait()

    def __enter__(self) -> None:
        self.add(1)

    def __exit__(self, *exception: object) -> None:
        self.add(-1)
