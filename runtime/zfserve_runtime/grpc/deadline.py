"""The caller's deadline, carried from the call to every step that waits or works."""

import time
from dataclasses import dataclass
from typing import Any

import grpc

from zfserve_runtime.errors import DeadlineExceeded


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock after which nobody waits for the answer.

    Attributes:
        at_s: in seconds of `time.monotonic()`; None where the caller set no deadline.
    """

    at_s: float | None = None

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext[Any, Any]) -> "Deadline":
        """The deadline of the call being served."""
        # The stubs leave out that a call without a deadline has None.
        remaining_s: float | None = context.time_remaining()
        return cls(None if remaining_s is None else time.monotonic() + remaining_s)

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float | None:
        """Seconds left, never negative; None without a deadline. Fits `asyncio.timeout` and a call's `timeout`."""
        return None if self.at_s is None else max(0.0, self.at_s - time.monotonic())

    def expired(self, early_s: float = 0.0) -> bool:
        """Whether it has passed, or will within `early_s`."""
        return self.at_s is not None and time.monotonic() >= self.at_s - early_s

    def check(self) -> None:
        """Raises DeadlineExceeded where the deadline has passed."""
        if self.expired():
            raise DeadlineExceeded("the deadline passed before the answer was ready; allow more time")
