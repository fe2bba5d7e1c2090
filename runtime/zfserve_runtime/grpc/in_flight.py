"""Counts what is under way, and tells when nothing is. Used by `gate`, and by the server for each version served."""

import asyncio


class InFlight:
    """Use from the event loop's thread only. As a context it counts one for as long as the block runs.

    Attributes:
        count: how many.
    """

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()

    def add(self, number: int) -> None:
        """Or take away, where it is negative."""
        self.count += number
        if not self.count:
            self._none.set()

    async def ended(self) -> None:
        """Wait until there is none."""
        while self.count:
            self._none.clear()
            await self._none.wait()

    def __enter__(self) -> None:
        self.add(1)

    def __exit__(self, *exception: object) -> None:
        self.add(-1)
