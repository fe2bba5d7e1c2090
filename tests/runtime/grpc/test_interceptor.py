"""Tests what the interceptor does for each call: its id, metrics, log line and status, and that it leaves no
garbage."""

import asyncio
import gc
import logging
import weakref
from typing import Any

import grpc
import pytest
from fakes.scripted_server import ScriptedServer, failure_at_the_end_of, failure_of, raising
from google.protobuf.empty_pb2 import Empty
from zfserve_runtime import errors
from zfserve_runtime.grpc.call_tracker import CallTracker
from zfserve_runtime.grpc.interceptor import Call, Method
from zfserve_runtime.grpc.request_id import current_request_id
from zfserve_runtime.telemetry.log_limiter import LogLimiter
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.tracing import NO_TRACERS


@pytest.mark.parametrize("method", ["unary", "stream"])
async def test_a_call_that_fails_leaves_nothing_to_the_garbage_collector(scripted: ScriptedServer, method: str) -> None:
    """The error refers to the request through its traceback. Under overload such garbage adds up: collections took 30
    ms."""
    raised = []

    def remembered() -> errors.Overloaded:
        error = errors.Overloaded("The queue is full.", retry_after_s=1.0)
        raised.append(weakref.ref(error))
        return error

    async def behaviour() -> str:
        raise remembered()

    scripted.behaviour = behaviour
    gc.disable()
    try:
        await failure_at_the_end_of(getattr(scripted, method)(Empty()))
        await asyncio.sleep(0.1)
        assert [error() for error in raised] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["unary", "stream"])
async def test_client_that_goes_away_ends_the_work(scripted: ScriptedServer, method: str) -> None:
    started = asyncio.Event()

    async def behaviour() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    scripted.behaviour = behaviour
    call = getattr(scripted, method)(Empty())
    reading = asyncio.ensure_future(call.read() if method == "stream" else call.code())
    await started.wait()
    call.cancel()
    await scripted.finished.wait()
    await asyncio.wait([reading])
    # The interceptor counts the call in the task of the handler, so no other task runs before that.
    assert scripted.count("CANCELLED", method.capitalize()) == 1


async def test_an_expired_deadline_is_counted_as_deadline_exceeded(scripted: ScriptedServer) -> None:
    await scripted.unary(Empty())  # connects, so that the next call's time is spent in the service
    scripted.finished.clear()

    async def behaviour() -> str:
        await asyncio.Event().wait()
        return "never"

    scripted.behaviour = behaviour
    failure = await failure_of(scripted.unary(Empty(), timeout=2))
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await scripted.finished.wait()
    assert scripted.count("DEADLINE_EXCEEDED") == 1


async def test_a_valid_request_id_is_kept_and_given_to_the_service(scripted: ScriptedServer) -> None:
    async def behaviour() -> str:
        return current_request_id()

    scripted.behaviour = behaviour
    call = scripted.unary(Empty(), metadata=[("x-request-id", "A.b_c-9")])
    assert (await call).value == "A.b_c-9"
    assert dict(await call.trailing_metadata())["x-request-id"] == "A.b_c-9"


@pytest.mark.parametrize("invalid", ["", "a b", "x" * 65, "id;drop"])
async def test_other_request_ids_are_replaced(scripted: ScriptedServer, invalid: str) -> None:
    async def behaviour() -> str:
        return current_request_id()

    scripted.behaviour = behaviour
    call = scripted.unary(Empty(), metadata=[("x-request-id", invalid)])
    made = (await call).value
    assert made != invalid
    assert len(made) == 16
    assert dict(await call.trailing_metadata())["x-request-id"] == made


async def test_one_log_line_per_call(scripted: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    scripted.behaviour = raising(errors.Overloaded("Try again in a second.", retry_after_s=1))
    await failure_of(scripted.unary(Empty(), metadata=[("x-request-id", "abc-3")]))
    (record,) = [record for record in caplog.records if record.name == "zfserve_runtime.grpc.interceptor"]
    fields = vars(record)
    assert (fields["method"], fields["status"]) == ("/test.Scripted/Unary", "RESOURCE_EXHAUSTED")
    assert (fields["request_id"], fields["reason"]) == ("abc-3", "OVERLOADED")
    assert fields["duration_ms"] >= 0
    assert record.exc_info is None


async def test_the_peer_of_an_ended_call_is_not_read(caplog: pytest.LogCaptureFixture) -> None:
    class EndingContext:
        """Fails where gRPC's own context would cause a segmentation fault."""

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
    method = Method("/test.Scripted/Unary", CallTracker(), Metrics(), NO_TRACERS, LogLimiter())
    with caplog.at_level(logging.INFO):
        with Call(method, context) as call:
            call.accept(Empty())
        context.ended = True
        await asyncio.sleep(0)
    (line,) = (record for record in caplog.records if record.message == "call")
    assert vars(line)["peer"] == "ipv4:192.0.2.1:50000"


async def test_successful_calls_are_measured(scripted: ScriptedServer) -> None:
    assert (await scripted.unary(Empty())).value == "done"
    assert [message.value async for message in scripted.stream(Empty())] == ["first", "done"]
    assert (scripted.count("OK"), scripted.count("OK", "Stream")) == (1, 1)
    seconds = {"method": "/test.Scripted/Unary"}
    assert scripted.metrics.registry.get_sample_value("zfserve_request_seconds_count", seconds) == 1
    assert scripted.metrics.registry.get_sample_value("zfserve_in_flight", seconds) == 0
