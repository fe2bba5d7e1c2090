"""Holds the caller's deadline, which every step of a call that waits or works checks."""

import time
from dataclasses import dataclass
from typing import Any

import grpc

from zfserve_runtime.errors import DeadlineExceeded


@dataclass(frozen=True)
class Deadline:
    """Holds the moment after which nobody waits for the answer.

    Attributes:
        at_s: the moment in seconds of `time.monotonic()`, or None if the caller set no deadline.
    """

    at_s: float | None = None

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext[Any, Any]) -> "Deadline":
        """Returns the deadline of the call that is being served."""
        # The stubs leave out that this is None for a call without a deadline.
        remaining_s: float | None = context.time_remaining()
        return cls(None if remaining_s is None else time.monotonic() + remaining_s)

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Returns the deadline that passes `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float | None:
        """Returns the seconds left, at least 0, or None without a deadline.

        `asyncio.timeout` and the `timeout` of a call take this value.
        """
        return None if self.at_s is None else max(0.0, self.at_s - time.monotonic())

    def expired(self, early_s: float = 0.0) -> bool:
        """Returns True if the deadline has passed, or will pass within `early_s` seconds."""
        return self.at_s is not None and time.monotonic() >= self.at_s - early_s

    def check(self) -> None:
        """Raises DeadlineExceeded if the deadline has passed."""
        if self.expired():
            raise DeadlineExceeded("the deadline passed before the answer was ready; allow more time")
