"""Identifies who sends a call and how urgent it is. Admission, the fair queue and the rate limit share by identity."""

from dataclasses import dataclass
from enum import StrEnum

from zfserve_protos.limits import MAX_CLIENT_ID_LENGTH
from zfserve_protos.metadata import CLIENT_ID_KEY, PRIORITY_KEY
from zfserve_runtime.access.authorizer import current_caller
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.method_handlers import Context, Metadata


class Priority(StrEnum):
    """Says how urgent a call is. Interactive images precede bulk images in the fair queue."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class CallerIdentity:
    """Names the client that sent a call, and the call's priority.

    Attributes:
        client: calls with the same client share one turn of the queue, one share of the places and one rate limit.
    """

    client: str = ""
    priority: Priority = Priority.INTERACTIVE


ANONYMOUS = CallerIdentity()
"""Stands for a caller that has no identity, as in tests and warm-up."""


def identify_caller(context: Context, metadata: Metadata) -> CallerIdentity:
    """Returns the identity of the caller.

    The client is the name that the caller proved by token or certificate. Without such a name it is the metadata
    `x-client-id`, which any caller may set to any text. Without that it is the address of the caller.

    Raises:
        InvalidInput: the priority is unknown, or the client's id is too long.
    """
    client, priority = current_caller().name, Priority.INTERACTIVE
    for key, value in metadata:
        if key == PRIORITY_KEY:
            priority = _read_priority(value)
        elif key == CLIENT_ID_KEY and not client:
            client = _read_client_id(value)
    return CallerIdentity(client or host_of(context.peer()), priority)


def host_of(peer: str) -> str:
    """Returns the host of a peer's address as gRPC writes it.

    The port is left out, so that one machine has one share, however many connections it has.
    """
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def _read_priority(value: str | bytes) -> Priority:
    try:
        return Priority(value)  # type: ignore[arg-type] # bytes are no priority
    except ValueError:
        raise InvalidInput(
            f"there is no priority {str(value)[:40]!r}; choose {' or '.join(Priority)}", field=PRIORITY_KEY
        ) from None


def _read_client_id(value: str | bytes) -> str:
    if len(value) > MAX_CLIENT_ID_LENGTH:
        raise InvalidInput(f"a client's id may have at most {MAX_CLIENT_ID_LENGTH} characters", field=CLIENT_ID_KEY)
    return str(value)
