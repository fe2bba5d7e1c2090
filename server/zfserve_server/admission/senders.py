"""Who sends a request, how urgent it is, and how many one client may send. The services ask first of all."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from zfserve_protos.limits import MAX_CLIENT_ID_LENGTH
from zfserve_protos.metadata import CLIENT_ID_KEY, PRIORITY_KEY
from zfserve_runtime.access.access import current_caller
from zfserve_runtime.errors import InvalidInput, RateExceeded
from zfserve_runtime.grpc.method_handlers import Context, Metadata, metadata_of


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Sender:
    """Where a request comes from.

    Attributes:
        client: whoever gets one share of a contended queue.
    """

    client: str = ""
    priority: Priority = Priority.INTERACTIVE


NOBODY = Sender()
"""For whoever has no call to recognise."""


class Senders:
    """Recognises the sender of a call, and holds each to its rate.

    Args:
        rate: requests a second that one client may send for long; None for any number.
        burst: requests that it may send at once; by default those of one second.
        clock: monotonic seconds.
    """

    def __init__(
        self, rate: float | None = None, burst: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._buckets = None if rate is None else _Buckets(1 / rate, max(1.0, burst or rate), clock)

    @property
    def remembered(self) -> int:
        """Clients whose rate is being counted."""
        return 0 if self._buckets is None else len(self._buckets)

    def recognise(self, context: Context) -> Sender:
        """The sender of the call being served, whose rate this call counts for.

        Raises:
            InvalidInput: see `identify`.
            RateExceeded: the client sends more than it may.
        """
        sender = self.identify(context, metadata_of(context))
        if self._buckets is not None:
            self._buckets.draw(sender.client)
        return sender

    def identify(self, context: Context, metadata: Metadata) -> Sender:
        """The sender of the call being served.

        It is known by the name it proved to have, by token or certificate; where it proved none, by the metadata
        `x-client-id`, which anyone may claim, else by the address it calls from.

        Raises:
            InvalidInput: there is no such priority, or the client's id is too long.
        """
        client, priority = current_caller().name, Priority.INTERACTIVE
        for key, value in metadata:
            if key == PRIORITY_KEY:
                priority = _priority(value)
            elif key == CLIENT_ID_KEY and not client:
                client = _client_id(value)
        return Sender(client or host_of(context.peer()), priority)


class _Buckets:
    """A token bucket for every client, as the moment at which it will be full again (GCRA, ITU-T I.371).

    A full bucket is not kept, so there are at most as many as clients that called while one fills.
    """

    def __init__(self, interval_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._depth_s = interval_s * burst
        self._clock = clock
        self._full_at: dict[str, float] = {}  # in the order of their last use

    def __len__(self) -> int:
        return len(self._full_at)

    def draw(self, client: str) -> None:
        """Take a token. Raises RateExceeded where there is none, which costs none."""
        now = self._clock()
        full_at = max(now, self._full_at.get(client, now)) + self._interval_s
        # What floating point adds up to must not cost the last token.
        if (short_s := full_at - now - self._depth_s) > 1e-9 * self._depth_s:
            raise RateExceeded(
                f"this client sends more than {1 / self._interval_s:.3g} requests a second; "
                f"try again in {short_s:.2g} s",
                retry_after_s=short_s,
            )
        self._full_at.pop(client, None)
        self._full_at[client] = full_at
        while self._full_at[oldest := next(iter(self._full_at))] <= now:
            del self._full_at[oldest]


def host_of(peer: str) -> str:
    """A peer's address as gRPC writes it, without the port: one machine has one share, however many connections."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def _priority(value: str | bytes) -> Priority:
    try:
        return Priority(value)  # type: ignore[arg-type] # bytes are none
    except ValueError:
        raise InvalidInput(
            f"there is no priority {str(value)[:40]!r}; choose {' or '.join(Priority)}", field=PRIORITY_KEY
        ) from None


def _client_id(value: str | bytes) -> str:
    if len(value) > MAX_CLIENT_ID_LENGTH:
        raise InvalidInput(f"a client's id may have {MAX_CLIENT_ID_LENGTH} characters", field=CLIENT_ID_KEY)
    return str(value)
