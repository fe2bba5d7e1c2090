"""Reads the google.rpc details of a failed call. The client reads those of the server, and the server the worker's.

Source: google.rpc `error_details.proto` and AIP-193.
"""

from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2

ERROR_DOMAIN = "zfserve"
"""The domain of all our reasons in ErrorInfo."""


class StatusDetails(NamedTuple):
    """Holds the details of one status. Absent details have the values "" and None.

    Attributes:
        domain: the origin of the error, `ERROR_DOMAIN` for our services.
        reason: the name of the error in that domain.
        request_id: the id of the failed request.
        field: the request field at fault.
        retry_after_s: the seconds after which a retry can succeed.
    """

    domain: str
    reason: str
    request_id: str
    field: str | None
    retry_after_s: float | None


def read_details(details: Iterable[Any]) -> StatusDetails:
    """Returns what the ErrorInfo, BadRequest and RetryInfo in `details` say. Ignores all other details."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in details:
        for message in (info, bad_request, retry):
            detail.Unpack(message)
    return StatusDetails(
        info.domain,
        info.reason,
        info.metadata.get("request_id", ""),
        bad_request.field_violations[0].field if bad_request.field_violations else None,
        retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
    )
