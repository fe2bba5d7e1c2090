"""Every error the clients raise. They mirror the statuses of the service; `zfserve.proto` says when each is sent.

ZfserveError
├── InvalidInput            INVALID_ARGUMENT      names the field; RESOURCE_EXHAUSTED, where the message is too large
├── Unauthenticated         UNAUTHENTICATED       the server wants a token, or does not know the one it got
├── PermissionDenied        PERMISSION_DENIED     the caller is known, and may not do this
├── NotFound                NOT_FOUND             an image reference that expired, an unknown layer
├── OutOfRange              OUT_OF_RANGE          a map or a unit the layer does not have
├── Overloaded              RESOURCE_EXHAUSTED    says when to try again
├── Unavailable             UNAVAILABLE           no server there, or it or its worker is coming up or going down
├── DeadlineExceeded        DEADLINE_EXCEEDED
├── Cancelled               CANCELLED
├── PreconditionFailed      FAILED_PRECONDITION   the worker holds other weights than the server
└── ServerFailed            any other status
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"


class ZfserveError(Exception):
    """The root.

    Attributes:
        message: a sentence that says what to do.
        code: the gRPC status.
        reason: the service's own name for the fault, such as "IMAGE_UNDECODABLE", stable across releases; "THROTTLED"
            where the client itself kept the call back; "" where the status came from neither, as when there is no
            connection.
        field: the request field at fault, such as "image.encoded".
        retry_after_s: when a retry can succeed.
        request_id: finds the request in the server's log.
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
    """The request cannot be answered as it is."""


class Unauthenticated(ZfserveError):
    """The server wants to know who calls, and this token or certificate does not tell it."""


class PermissionDenied(ZfserveError):
    """The server knows who calls, and does not permit this method."""


class NotFound(ZfserveError):
    """The image reference has expired, or there is no such layer."""


class OutOfRange(ZfserveError):
    """The layer has no such map or unit."""


class Overloaded(ZfserveError):
    """The server is too busy, or refused most calls of late; `retry_after_s` says when to try again."""


class Unavailable(ZfserveError):
    """No server there, or it or its worker is starting or stopping."""


class DeadlineExceeded(ZfserveError):
    """There was no answer within the time given."""


class Cancelled(ZfserveError):
    """The call was cancelled, as by closing the client."""


class PreconditionFailed(ZfserveError):
    """The worker holds other weights than the server."""


class ServerFailed(ZfserveError):
    """A fault of the server; `request_id` finds it in the server's log."""


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
}


_TOO_LARGE = {
    "SERVER: Received message larger than max": "the request is larger than the server takes; scale the photo down",
    "CLIENT: Received message larger than max": "the answer is larger than this client takes; raise max_message_bytes",
}
"""gRPC's words, whose status is that of a service which is busy, and what they mean: no retry helps."""


@contextmanager
def translated() -> Iterator[None]:
    """Raises each gRPC error in its body as a ZfserveError. Serves sync and async calls alike."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_call(error) from error
    except grpc.FutureCancelledError as error:
        raise Cancelled("the call was cancelled", grpc.StatusCode.CANCELLED) from error


def from_call(call: grpc.RpcError) -> ZfserveError:
    """The error of a failed call, with what google.rpc details say of it.

    Args:
        call: as raised by a call on a channel, sync or async.
    """
    code: grpc.StatusCode = call.code()
    # Pairs in both APIs, whatever the stubs say.
    trailing = dict(cast("Iterable[tuple[str, Any]]", call.trailing_metadata() or ()))
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(trailing.get(DETAILS_KEY, b"")).details:
        for message in (info, bad_request, retry):
            detail.Unpack(message)
    details = call.details() or code.name
    for words, sentence in _TOO_LARGE.items():
        if words in details and not info.reason:
            return InvalidInput(f"{sentence} ({details})", code, request_id=trailing.get(REQUEST_ID_KEY))
    return _BY_CODE.get(code, ServerFailed)(
        details,
        code,
        reason=info.reason,
        field=bad_request.field_violations[0].field if bad_request.field_violations else None,
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
        request_id=info.metadata.get("request_id") or trailing.get(REQUEST_ID_KEY),
    )
