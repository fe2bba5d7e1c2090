"""Tests the status of each error class, and of every other error that can end a call, through a real channel."""

import asyncio
import json
from typing import Any, TypeVar

import grpc
import pytest
from fakes.scripted_server import ScriptedServer, details_of, failure_at_the_end_of, failure_of, raising, stubs
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from zfserve_protos.metadata import STATUS_DETAILS_KEY
from zfserve_runtime import errors
from zfserve_runtime.grpc.status import error_classes, from_call_error, to_status

M = TypeVar("M", bound=Message)
SECRET = "/var/secret/path of another user"

STATUSES = {
    errors.ServiceError: "INTERNAL",
    errors.InvalidInput: "INVALID_ARGUMENT",
    errors.ImageUndecodable: "INVALID_ARGUMENT",
    errors.ImageTooLarge: "INVALID_ARGUMENT",
    errors.Unauthenticated: "UNAUTHENTICATED",
    errors.PermissionDenied: "PERMISSION_DENIED",
    errors.NotFound: "NOT_FOUND",
    errors.OutOfRange: "OUT_OF_RANGE",
    errors.Unimplemented: "UNIMPLEMENTED",
    errors.Overloaded: "RESOURCE_EXHAUSTED",
    errors.RateExceeded: "RESOURCE_EXHAUSTED",
    errors.DeadlineExceeded: "DEADLINE_EXCEEDED",
    errors.Cancelled: "CANCELLED",
    errors.WorkerUnavailable: "UNAVAILABLE",
    errors.WorkerMismatch: "FAILED_PRECONDITION",
    errors.BundleOutdated: "FAILED_PRECONDITION",
    errors.Starting: "UNAVAILABLE",
    errors.ShuttingDown: "UNAVAILABLE",
    errors.EngineFailed: "INTERNAL",
    errors.EngineHung: "INTERNAL",
    errors.EngineLost: "UNAVAILABLE",
}


def test_the_table_covers_every_error_class() -> None:
    assert set(error_classes()) == set(STATUSES)


@pytest.mark.parametrize("error_class", STATUSES, ids=lambda error_class: error_class.__name__)
async def test_error_class_becomes_its_status_with_details(
    scripted: ScriptedServer, error_class: type[errors.ServiceError]
) -> None:
    scripted.behaviour = raising(error_class("Do this instead.", field="image.encoded", retry_after_s=1.5))
    failure = await failure_of(scripted.unary(Empty(), metadata=[("x-request-id", "abc-1")]))

    assert failure.code().name == STATUSES[error_class]
    assert failure.details() == "Do this instead."
    details = details_of(failure)
    assert details["ErrorInfo"].domain == "zfserve"
    assert details["ErrorInfo"].reason == error_class.reason
    assert details["ErrorInfo"].metadata == {"request_id": "abc-1"}
    (violation,) = details["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("image.encoded", "Do this instead.")
    assert details["RetryInfo"].retry_delay.ToMilliseconds() == 1500
    trailing = dict(failure.trailing_metadata())
    assert (trailing["x-request-id"], trailing["grpc-retry-pushback-ms"]) == ("abc-1", "1500")
    assert scripted.count(STATUSES[error_class]) == 1

    returned = from_call_error(failure)
    assert type(returned) is error_class
    assert vars(returned) == {"message": "Do this instead.", "field": "image.encoded", "retry_after_s": 1.5}


@given(
    st.lists(st.from_regex(r"[0-9a-f]{16}|[A-Za-z0-9._-]{1,64}", fullmatch=True), min_size=1, max_size=3),
    st.sampled_from(["Do this instead.", ""]) | st.text(max_size=30),
    st.none() | st.text(max_size=10),
    st.none() | st.sampled_from([0.5, 2.0]),
)
def test_each_call_gets_its_own_id(
    request_ids: list[str], message: str, field: str | None, retry_after_s: float | None
) -> None:
    """The details are serialised once for many calls."""
    error = errors.Overloaded(message, field=field, retry_after_s=retry_after_s)
    for request_id in request_ids:
        details: Any = dict(to_status(error).metadata(request_id))[STATUS_DETAILS_KEY]
        status = Status.FromString(details)
        info, *others = status.details
        assert (status.code, status.message) == (8, message)
        assert unpacked(info, ErrorInfo).metadata == {"request_id": request_id}
        assert len(others) == (field is not None) + (retry_after_s is not None)
        if retry_after_s is not None:
            assert unpacked(others[-1], RetryInfo).retry_delay.ToMilliseconds() == retry_after_s * 1000


def unpacked(detail: AnyMessage, kind: type[M]) -> M:
    message = kind()
    assert detail.Unpack(message)
    return message


async def test_details_hold_only_what_the_error_says(scripted: ScriptedServer) -> None:
    scripted.behaviour = raising(errors.NotFound("There is no such layer."))
    assert details_of(await failure_of(scripted.unary(Empty()))).keys() == {"ErrorInfo"}


@pytest.mark.parametrize("error", [RuntimeError(SECRET), asyncio.CancelledError(SECRET), TimeoutError(SECRET)])
async def test_unexpected_exception_is_logged_and_leaks_nothing(
    scripted: ScriptedServer, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.behaviour = raising(error)
    failure = await failure_of(scripted.unary(Empty(), metadata=[("x-request-id", "abc-2")]))

    assert failure.code() is grpc.StatusCode.INTERNAL
    assert failure.details() == "internal error; quote request id abc-2 to the operator"
    assert SECRET not in str(failure.trailing_metadata()) + str(failure.initial_metadata())
    (record,) = [record for record in caplog.records if record.getMessage() == "call"]
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert scripted.count("INTERNAL") == 1


async def test_error_after_some_messages_of_a_stream(scripted: ScriptedServer) -> None:
    scripted.behaviour = raising(errors.OutOfRange("The layer has 5 maps."))
    call = scripted.stream(Empty())
    first = await call.read()
    assert isinstance(first, StringValue)
    assert first.value == "first"
    failure = await failure_of(call.read())
    assert failure.code() is grpc.StatusCode.OUT_OF_RANGE
    assert details_of(failure)["ErrorInfo"].reason == "OUT_OF_RANGE"
    assert scripted.count("OUT_OF_RANGE", "Stream") == 1


@pytest.mark.parametrize(("method", "attempts"), [("unary", 3), ("stream", 1)])
async def test_a_refused_call_is_tried_again_by_grpcs_own_retries(
    scripted: ScriptedServer, method: str, attempts: int
) -> None:
    """gRPC retries only if no message came before the status. The stream has sent one."""
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    scripted.behaviour = raising(errors.Overloaded("The queue is full.", retry_after_s=0.01))
    async with grpc.aio.insecure_channel(scripted.target, options=[("grpc.service_config", config)]) as channel:
        unary, stream = stubs(channel)
        await failure_at_the_end_of({"unary": unary, "stream": stream}[method](Empty()))
    assert scripted.count("RESOURCE_EXHAUSTED", method.capitalize()) == attempts


@pytest.mark.parametrize("method", ["unary_unary", "unary_stream"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    scripted: ScriptedServer, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = "Unary" if method == "unary_unary" else "Stream"
    call = getattr(scripted.channel, method)(f"/test.Scripted/{name}")(b"\xff\xff no message")
    failure = await failure_of(call if method == "unary_unary" else call.read())
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.details() == "the request is not the message that this method takes"
    assert scripted.count("INVALID_ARGUMENT", name) == 1
    assert details_of(failure)["ErrorInfo"].reason == "INVALID_INPUT"
    assert all(record.exc_info is None for record in caplog.records)


async def test_unknown_method_is_unimplemented(scripted: ScriptedServer) -> None:
    missing = scripted.channel.unary_unary("/test.Scripted/Missing", Empty.SerializeToString, StringValue.FromString)
    assert (await failure_of(missing(Empty()))).code() is grpc.StatusCode.UNIMPLEMENTED
