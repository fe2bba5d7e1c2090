"""Turns errors into gRPC statuses with google.rpc details, and back.

The interceptor writes statuses. The server reads those of the worker.
Source: google.rpc `error_details.proto` and AIP-193.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from secrets import token_hex
from typing import NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from zfserve_protos.metadata import RETRY_PUSHBACK_KEY, STATUS_DETAILS_KEY
from zfserve_protos.status_details import ERROR_DOMAIN, read_details

from zfserve_runtime.errors import ServiceError

MAX_SENTENCE_BYTES, MAX_FIELD_BYTES = 1000, 200
"""Messages quote the input of callers. If the metadata of a status exceed 8 KiB, gRPC may drop even the code."""

_ID_PLACEHOLDER = token_hex(8)
"""Stands for a request's id in details that are serialised once for many requests. It is as long as the ids that we
generate."""


class ErrorStatus(NamedTuple):
    """Holds the status of a failed call: everything in its google.rpc details except the request's id.

    Without the id, many requests have equal statuses, whose details are serialised only once.

    Attributes:
        message, field: see `ServiceError`. They are shortened.
    """

    code: grpc.StatusCode
    message: str
    reason: str
    field: str | None
    retry_after_s: float | None

    def metadata(self, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
        """Returns the trailing metadata, with the details and the delay before a retry."""
        if len(request_id) == len(_ID_PLACEHOLDER):
            before, after = _around_id(self)
            details = (STATUS_DETAILS_KEY, before + request_id.encode() + after)
        else:
            details = (STATUS_DETAILS_KEY, _details(self, request_id))
        if self.retry_after_s is None:
            return (details,)
        return details, (RETRY_PUSHBACK_KEY, str(math.ceil(self.retry_after_s * 1e3)))


def to_status(error: ServiceError) -> ErrorStatus:
    """Returns the status that answers `error`."""
    message = _shortened(error.message, MAX_SENTENCE_BYTES)
    field = None if error.field is None else _shortened(error.field, MAX_FIELD_BYTES)
    return ErrorStatus(error.status, message, error.reason, field, error.retry_after_s)


@lru_cache(maxsize=256)
def _around_id(status: ErrorStatus) -> tuple[bytes, bytes]:
    """Returns the serialised details before and after the request's id.

    Under overload many calls get one of a few refusals. The details are five protobuf messages, and serialising them
    takes half of the time of a refusal.
    """
    before, after = _details(status, _ID_PLACEHOLDER).split(_ID_PLACEHOLDER.encode())
    return before, after


def _details(status: ErrorStatus, request_id: str) -> bytes:
    """Returns a serialised google.rpc.Status. It has an ErrorInfo, and a BadRequest or RetryInfo if they apply."""
    number: int = status.code.value[0]
    message = status_pb2.Status(code=number, message=status.message)
    info = error_details_pb2.ErrorInfo(reason=status.reason, domain=ERROR_DOMAIN, metadata={"request_id": request_id})
    message.details.add().Pack(info)
    if status.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=status.field, description=status.message)
        message.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if status.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(status.retry_after_s * 1e9))
        message.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    serialised: bytes = message.SerializeToString()
    return serialised


def _shortened(text: str, max_bytes: int) -> str:
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= max_bytes else encoded[:max_bytes].decode(errors="ignore") + "…"


def from_call_error(call_error: grpc.aio.AioRpcError) -> ServiceError | None:
    """Returns the error with which one of our services ended this call, or None if the status has another origin.

    ErrorInfo's reason determines the class, so raising the result answers with an equal status.
    """
    try:
        status = rpc_status.from_call(call_error)
    except ValueError:  # the details contradict the code, so they are not ours
        return None
    if status is None:
        return None
    details = read_details(status.details)
    by_reason = {error.reason: error for error in error_classes()}
    if details.domain != ERROR_DOMAIN or details.reason not in by_reason:
        return None
    return by_reason[details.reason](status.message, field=details.field, retry_after_s=details.retry_after_s)


def error_classes(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Yields `root` and all classes below it."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)
