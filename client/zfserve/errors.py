"""Defines the errors of the clients. Each class stands for a gRPC status. docs/errors.md lists the causes.

ZfserveError
├── InvalidInput            INVALID_ARGUMENT      a value in the request is wrong, or the message is too large
├── Unauthenticated         UNAUTHENTICATED       the server does not know the caller, and needs to
├── PermissionDenied        PERMISSION_DENIED     the caller is known and may not call this method
├── NotFound                NOT_FOUND             no such model, version, layer, class or image reference
├── OutOfRange              OUT_OF_RANGE          the layer has no such map or unit
├── Overloaded              RESOURCE_EXHAUSTED    the server is too busy
├── Unavailable             UNAVAILABLE           no server or worker can answer now
├── DeadlineExceeded        DEADLINE_EXCEEDED     the call took longer than its timeout
├── Cancelled               CANCELLED             the client was closed, or the call was cancelled
├── PreconditionFailed      FAILED_PRECONDITION   the worker holds other weights than the server
├── Unimplemented           UNIMPLEMENTED         the network cannot do this, or the server does not know the method
└── ServerFailed            any other status      a fault of the server
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
from google.rpc import status_pb2
from zfserve_protos.metadata import REQUEST_ID_KEY, STATUS_DETAILS_KEY
from zfserve_protos.status_details import read_details


class ZfserveError(Exception):
    """A call failed. Every error that a call raises is one of the subclasses.

    Attributes:
        message: a sentence that says what is wrong and what to do. It is also `str(error)`.
        code: the gRPC status, a `grpc.StatusCode`.
        reason: the service's name for the fault, such as "IMAGE_UNDECODABLE". It stays the same across releases.
            "THROTTLED" if this client did not send the call (see `Overloaded`). "" for any other
            error that the client or gRPC made, for example because there is no connection.
        field: the field of the request at fault, such as "image.encoded". None if no field is at fault.
        retry_after_s: the number of seconds after which a retry can succeed. None if that is not known.
        request_id: the request's id, which is in the server's log. None if the request reached no server.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode,
        *,
        reason: str = "",
        field: str | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.field = field
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class InvalidInput(ZfserveError):
    """A value in the request is missing or wrong, the photo cannot be read or decoded, or the message is too large.

    A retry with the same request fails again. `field` names the value, if one is at fault.
    """


class Unauthenticated(ZfserveError):
    """The server needs to know the caller. The call has no token or certificate, or the server does not know it."""


class PermissionDenied(ZfserveError):
    """The server knows the caller, and does not permit the caller to call this method."""


class NotFound(ZfserveError):
    """There is no such model, version, layer or class, or the image reference is unknown or has expired."""


class OutOfRange(ZfserveError):
    """The layer has no such map or unit, or has fewer maps than the call asks for."""


class Overloaded(ZfserveError):
    """The server is too busy, or this client sends too many requests. `retry_after_s` says when to try again.

    The client itself raises it with the reason "THROTTLED", and sends nothing, if the server refused most of its recent
    calls and `adaptive_throttling` is on.
    """


class Unavailable(ZfserveError):
    """No server answers at the address, or the server or its worker is starting or stopping. Try again later."""


class DeadlineExceeded(ZfserveError):
    """The call took longer than its timeout, retries included."""


class Cancelled(ZfserveError):
    """The client was closed before or during the call, or the call was cancelled."""


class PreconditionFailed(ZfserveError):
    """The worker that computes projections holds other weights than the server. The operator must give both the same
    models."""


class Unimplemented(ZfserveError):
    """The network cannot be projected or explained, and the message names the node in the way. Or the server is of a
    release that does not know the method."""


class ServerFailed(ZfserveError):
    """The server is at fault. `request_id` finds the request in the server's log."""


_BY_CODE: dict[grpc.StatusCode, type[ZfserveError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


_TOO_LARGE = {
    "SERVER: Received message larger than max": "the request is larger than the server takes; "
    "send fewer photos at once, or scale the photo down",
    "CLIENT: Received message larger than max": "the answer is larger than this client takes; raise max_message_bytes",
}
"""gRPC's words for a message that is too large, and the sentence to raise instead. gRPC uses the status of a busy
service for them, although no retry helps."""


@contextmanager
def translated() -> Iterator[None]:
    """Raises each gRPC error of its body as a ZfserveError. Sync and async calls use it.

    Raises:
        ZfserveError: the body raised a gRPC error.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise from_call(error) from error
    except grpc.FutureCancelledError as error:
        raise Cancelled("the call was cancelled", grpc.StatusCode.CANCELLED) from error


def from_call(call: grpc.RpcError) -> ZfserveError:
    """Returns the error for a failed call, with the values from its google.rpc details.

    Args:
        call: the exception that a call on a sync or async channel raised.
    """
    code: grpc.StatusCode = call.code()
    # The metadata are pairs in both APIs, although the stubs declare other types.
    trailing = dict(cast("Iterable[tuple[str, Any]]", call.trailing_metadata() or ()))
    details = read_details(status_pb2.Status.FromString(trailing.get(STATUS_DETAILS_KEY, b"")).details)
    message = call.details() or code.name
    for words, sentence in _TOO_LARGE.items():
        if words in message and not details.reason:
            return InvalidInput(f"{sentence} ({message})", code, request_id=trailing.get(REQUEST_ID_KEY))
    return _BY_CODE.get(code, ServerFailed)(
        message,
        code,
        reason=details.reason,
        field=details.field,
        retry_after_s=details.retry_after_s,
        request_id=details.request_id or trailing.get(REQUEST_ID_KEY),
    )
