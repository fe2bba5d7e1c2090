"""Every error class, and every other way a call can end, through a real channel."""

import asyncio
import gc
import json
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from zfserve_runtime import errors, overload_log
from zfserve_runtime.gate import Gate
from zfserve_runtime.intercepting_server import InterceptingServer
from zfserve_runtime.interceptor import Call, Method
from zfserve_runtime.metrics import Metrics
from zfserve_runtime.request_id import current_request_id
from zfserve_runtime.status import error_classes, from_call_error

Behaviour = Callable[[], Awaitable[str]]
SECRET = "/var/secret/path of another user"


class Probe:
    """A server whose one unary and one streaming method run what a test gives them, and a channel to it."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.behaviour: Behaviour = self._answer
        self.finished = asyncio.Event()
        self.channel: grpc.aio.Channel
        self.target: str

    async def _answer(self) -> str:
        return "done"

    async def _unary(self, request: Empty, context: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
        try:
            return StringValue(value=await self.behaviour())
        finally:
            self.finished.set()

    async def _stream(self, request: Empty, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[StringValue]:
        try:
            yield StringValue(value="first")
            yield StringValue(value=await self.behaviour())
        finally:
            self.finished.set()

    async def __aenter__(self) -> "Probe":
        self._server = InterceptingServer(self.metrics)
        encoding: Any = {"request_deserializer": Empty.FromString, "response_serializer": StringValue.SerializeToString}
        unary: Any = self._unary
        stream: Any = self._stream
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary, **encoding),
            "Stream": grpc.unary_stream_rpc_method_handler(stream, **encoding),
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Probe", methods)])
        port = self._server.add_insecure_port("localhost:0")
        await self._server.start()
        self.target = f"localhost:{port}"
        self.channel = grpc.aio.insecure_channel(self.target)
        self.unary = self.channel.unary_unary("/test.Probe/Unary", Empty.SerializeToString, StringValue.FromString)
        self.stream = self.channel.unary_stream("/test.Probe/Stream", Empty.SerializeToString, StringValue.FromString)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self._server.stop(None)

    def count(self, status: str, method: str = "Unary") -> float:
        labels = {"method": f"/test.Probe/{method}", "status": status}
        return self.metrics.registry.get_sample_value("zfserve_requests_total", labels) or 0.0


@pytest.fixture
async def probe() -> AsyncIterator[Probe]:
    async with Probe() as started:
        yield started


def raising(error: BaseException) -> Behaviour:
    async def behaviour() -> str:
        raise error

    return behaviour


async def failure_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details_of(failure: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details by their type's name."""
    status = rpc_status.from_call(failure)
    assert status is not None
    found = {}
    for detail in status.details:
        name = detail.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert detail.Unpack(found[name])
    return found


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
    errors.Starting: "UNAVAILABLE",
    errors.ShuttingDown: "UNAVAILABLE",
    errors.EngineFailed: "INTERNAL",
    errors.EngineHung: "INTERNAL",
    errors.EngineLost: "UNAVAILABLE",
}


def test_the_table_below_covers_every_error_class() -> None:
    assert set(error_classes()) == set(STATUSES)


@pytest.mark.parametrize("error_class", STATUSES, ids=lambda error_class: error_class.__name__)
async def test_error_class_becomes_its_status_with_details(
    probe: Probe, error_class: type[errors.ServiceError]
) -> None:
    probe.behaviour = raising(error_class("Do this instead.", field="image.encoded", retry_after_s=1.5))
    failure = await failure_of(probe.unary(Empty(), metadata=[("x-request-id", "abc-1")]))

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
    assert probe.count(STATUSES[error_class]) == 1

    returned = from_call_error(failure)
    assert type(returned) is error_class
    assert vars(returned) == {"message": "Do this instead.", "field": "image.encoded", "retry_after_s": 1.5}


async def test_details_hold_nothing_that_the_error_does_not_say(probe: Probe) -> None:
    probe.behaviour = raising(errors.NotFound("There is no such layer."))
    assert details_of(await failure_of(probe.unary(Empty()))).keys() == {"ErrorInfo"}


@pytest.mark.parametrize("error", [RuntimeError(SECRET), asyncio.CancelledError(SECRET), TimeoutError(SECRET)])
async def test_unexpected_exception_is_logged_and_leaks_nothing(
    probe: Probe, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    probe.behaviour = raising(error)
    failure = await failure_of(probe.unary(Empty(), metadata=[("x-request-id", "abc-2")]))

    assert failure.code() is grpc.StatusCode.INTERNAL
    assert failure.details() == "internal error; quote request id abc-2 to the operator"
    assert SECRET not in str(failure.trailing_metadata()) + str(failure.initial_metadata())
    (record,) = [record for record in caplog.records if record.getMessage() == "call"]
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert probe.count("INTERNAL") == 1


async def test_error_after_some_messages_of_a_stream(probe: Probe) -> None:
    probe.behaviour = raising(errors.OutOfRange("The layer has 5 maps."))
    call = probe.stream(Empty())
    first = await call.read()
    assert isinstance(first, StringValue)
    assert first.value == "first"
    failure = await failure_of(call.read())
    assert failure.code() is grpc.StatusCode.OUT_OF_RANGE
    assert details_of(failure)["ErrorInfo"].reason == "OUT_OF_RANGE"
    assert probe.count("OUT_OF_RANGE", "Stream") == 1


@pytest.mark.parametrize(("method", "attempts"), [("unary", 3), ("stream", 1)])
async def test_a_refused_call_is_tried_again_by_grpcs_own_retries(probe: Probe, method: str, attempts: int) -> None:
    """As they do only where nothing came before the status; the stream has sent a message."""
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    probe.behaviour = raising(errors.Overloaded("Many wait.", retry_after_s=0.01))
    async with grpc.aio.insecure_channel(probe.target, options=[("grpc.service_config", config)]) as channel:
        if method == "unary":
            await failure_of(channel.unary_unary("/test.Probe/Unary", Empty.SerializeToString)(Empty()))
        else:
            call = channel.unary_stream("/test.Probe/Stream", Empty.SerializeToString, StringValue.FromString)(Empty())
            await call.read()
            await failure_of(call.read())
    assert probe.count("RESOURCE_EXHAUSTED", method.capitalize()) == attempts


@pytest.mark.parametrize("method", ["unary", "stream"])
async def test_a_call_that_fails_leaves_nothing_to_the_garbage_collector(probe: Probe, method: str) -> None:
    """Its error refers to the request by its traceback. Under overload it would be much: collections took 30 ms."""
    raised = []

    def remembered() -> errors.Overloaded:
        error = errors.Overloaded("Many wait.", retry_after_s=1.0)
        raised.append(weakref.ref(error))
        return error

    async def behaviour() -> str:
        raise remembered()

    probe.behaviour = behaviour
    gc.disable()
    try:
        call = getattr(probe, method)(Empty())
        if method == "stream":
            await call.read()
        await failure_of(call if method == "unary" else call.read())
        await asyncio.sleep(0.1)
        assert [error() for error in raised] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["unary", "stream"])
async def test_client_that_goes_away_ends_the_work(probe: Probe, method: str) -> None:
    started = asyncio.Event()

    async def behaviour() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    probe.behaviour = behaviour
    call = getattr(probe, method)(Empty())
    reading = asyncio.ensure_future(call.read() if method == "stream" else call.code())
    await started.wait()
    call.cancel()
    await probe.finished.wait()
    await asyncio.wait([reading])
    # The interceptor counts in the handler's own task, before anyone else runs again.
    assert probe.count("CANCELLED", method.capitalize()) == 1


async def test_expired_deadline_is_counted_as_such(probe: Probe) -> None:
    await probe.unary(Empty())  # connects, so that the next call's time is spent in the service
    probe.finished.clear()

    async def behaviour() -> str:
        await asyncio.Event().wait()
        return "never"

    probe.behaviour = behaviour
    failure = await failure_of(probe.unary(Empty(), timeout=2))
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await probe.finished.wait()
    assert probe.count("DEADLINE_EXCEEDED") == 1


async def test_sane_request_id_is_kept_and_given_to_the_service(probe: Probe) -> None:
    async def behaviour() -> str:
        return current_request_id()

    probe.behaviour = behaviour
    call = probe.unary(Empty(), metadata=[("x-request-id", "A.b_c-9")])
    assert (await call).value == "A.b_c-9"
    assert dict(await call.trailing_metadata())["x-request-id"] == "A.b_c-9"


@pytest.mark.parametrize("insane", ["", "a b", "x" * 65, "id;drop"])
async def test_other_request_ids_are_replaced(probe: Probe, insane: str) -> None:
    async def behaviour() -> str:
        return current_request_id()

    probe.behaviour = behaviour
    call = probe.unary(Empty(), metadata=[("x-request-id", insane)])
    made = (await call).value
    assert made != insane
    assert len(made) == 16
    assert dict(await call.trailing_metadata())["x-request-id"] == made


async def test_one_log_line_per_call(probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    probe.behaviour = raising(errors.Overloaded("Try again in a second.", retry_after_s=1))
    await failure_of(probe.unary(Empty(), metadata=[("x-request-id", "abc-3")]))
    (record,) = [record for record in caplog.records if record.name == "zfserve_runtime.interceptor"]
    fields = vars(record)
    assert (fields["method"], fields["status"]) == ("/test.Probe/Unary", "RESOURCE_EXHAUSTED")
    assert (fields["request_id"], fields["reason"]) == ("abc-3", "OVERLOADED")
    assert fields["duration_ms"] >= 0
    assert record.exc_info is None


async def test_a_call_that_has_ended_is_not_asked_for_its_peer(caplog: pytest.LogCaptureFixture) -> None:
    class EndingContext:
        """Like gRPC's own, but for the segmentation fault."""

        ended = False

        def peer(self) -> str:
            assert not self.ended
            return "ipv4:192.0.2.1:50000"

        def invocation_metadata(self) -> tuple[()]:
            return ()

        def set_trailing_metadata(self, metadata: object) -> None:
            pass

        def code(self) -> None:
            return None

    context: Any = EndingContext()
    method = Method("/test.Probe/Unary", Gate(), Metrics(), None, overload_log.OverloadLog())
    with caplog.at_level(logging.INFO):
        with Call(method, context):
            pass
        context.ended = True
        await asyncio.sleep(0)
    (line,) = (record for record in caplog.records if record.message == "call")
    assert vars(line)["peer"] == "ipv4:192.0.2.1:50000"


async def test_of_many_refusals_only_the_first_have_a_line_in_the_log(
    probe: Probe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(overload_log, "SECOND", 60.0)

    def lines() -> int:
        return sum(record.getMessage() == "call" for record in caplog.records)

    probe.behaviour = raising(errors.Overloaded("Try again in a second.", retry_after_s=1))
    refused = overload_log.LINES + 5
    await asyncio.gather(*(failure_of(probe.unary(Empty())) for _ in range(refused)))
    assert lines() == overload_log.LINES
    assert probe.count("RESOURCE_EXHAUSTED") == refused, "the metrics have them all"
    probe.behaviour = raising(errors.InvalidInput("Send an image."))
    await failure_of(probe.unary(Empty()))
    assert lines() == overload_log.LINES + 1, "other errors have their lines"


async def test_refusals_without_a_line_are_counted_once_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(overload_log, "SECOND", 0.01)
    log = overload_log.OverloadLog()
    for more in (0, 7):
        assert [log.has_room() for _ in range(overload_log.LINES + more)].count(False) == more
        await asyncio.sleep(overload_log.SECOND)
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["calls"]) == ("refused more calls", 7)
    assert log.has_room()


async def test_successful_calls_are_measured(probe: Probe) -> None:
    assert (await probe.unary(Empty())).value == "done"
    assert [message.value async for message in probe.stream(Empty())] == ["first", "done"]
    assert (probe.count("OK"), probe.count("OK", "Stream")) == (1, 1)
    seconds = {"method": "/test.Probe/Unary"}
    assert probe.metrics.registry.get_sample_value("zfserve_request_seconds_count", seconds) == 1
    assert probe.metrics.registry.get_sample_value("zfserve_in_flight", seconds) == 0


@pytest.mark.parametrize("method", ["unary_unary", "unary_stream"])
async def test_what_is_no_message_is_the_callers_fault(
    probe: Probe, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = "Unary" if method == "unary_unary" else "Stream"
    call = getattr(probe.channel, method)(f"/test.Probe/{name}")(b"\xff\xff no message")
    failure = await failure_of(call if method == "unary_unary" else call.read())
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.details() == "the request is not the message that this method takes"
    assert probe.count("INVALID_ARGUMENT", name) == 1
    assert details_of(failure)["ErrorInfo"].reason == "INVALID_INPUT"
    assert all(record.exc_info is None for record in caplog.records)


async def test_unknown_method_is_unimplemented(probe: Probe) -> None:
    missing = probe.channel.unary_unary("/test.Probe/Missing", Empty.SerializeToString, StringValue.FromString)
    assert (await failure_of(missing(Empty()))).code() is grpc.StatusCode.UNIMPLEMENTED
