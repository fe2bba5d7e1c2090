import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_runtime.errors import ShuttingDown
from zfserve_runtime.grpc.health import SERVER, Health, add_health_and_reflection
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.grpc.shutdown import StopRequest, drain, sigterm_as_exit
from zfserve_runtime.grpc.status import from_call_error
from zfserve_runtime.telemetry.metrics import Metrics

LONG_S = 600.0


class SlowServer:
    """Runs a server with one method, which answers once `release` is set."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.release = asyncio.Event()
        self.health = Health(SERVER)
        self.server = InterceptingServer(Metrics())
        serve: Any = self._serve
        handler = grpc.unary_unary_rpc_method_handler(serve, Empty.FromString, Empty.SerializeToString)
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Slow", {"Call": handler})])
        add_health_and_reflection(self.server, self.health)
        self.port = self.server.add_insecure_port("localhost:0")

    async def _serve(self, request: Empty, context: grpc.aio.ServicerContext[Any, Any]) -> Empty:
        self.began.set()
        await self.release.wait()
        return request


@pytest.fixture
async def slow() -> AsyncIterator[SlowServer]:
    slow = SlowServer()
    await slow.server.start()
    slow.health.serving(SERVER)
    yield slow
    await slow.server.stop(None)


@pytest.fixture
async def channel(slow: SlowServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"localhost:{slow.port}") as opened:
        yield opened


def call(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary("/test.Slow/Call", Empty.SerializeToString, Empty.FromString)(Empty())


async def test_drain_finishes_what_was_accepted_and_refuses_the_rest(
    slow: SlowServer, channel: grpc.aio.Channel
) -> None:
    watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVER))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    accepted = call(channel)
    await slow.began.wait()

    draining = asyncio.ensure_future(drain(slow.server, slow.health, LONG_S, StopRequest()))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    async with grpc.aio.insecure_channel(f"localhost:{slow.port}") as late:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(late)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    error = from_call_error(refused.value)
    assert isinstance(error, ShuttingDown), "the service refuses the call itself: gRPC would answer CANCELLED"
    assert not draining.done()

    slow.release.set()
    assert await accepted == Empty()
    await draining


async def test_calls_that_outlast_the_grace_are_cancelled(slow: SlowServer, channel: grpc.aio.Channel) -> None:
    accepted = call(channel)
    await slow.began.wait()
    await drain(slow.server, slow.health, 0.01, StopRequest())
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await accepted


async def test_a_second_signal_ends_the_drain(slow: SlowServer, channel: grpc.aio.Channel) -> None:
    stop = StopRequest()
    with stop.on_signals():
        accepted = call(channel)
        await slow.began.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        draining = asyncio.ensure_future(drain(slow.server, slow.health, LONG_S, stop))
        os.kill(os.getpid(), signal.SIGINT)
        await draining
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await accepted
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_calls_are_accepted_until_clients_that_watch_health_have_gone_elsewhere(
    slow: SlowServer, channel: grpc.aio.Channel
) -> None:
    watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVER))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    stop = StopRequest()
    stop.ask("test")
    draining = asyncio.ensure_future(drain(slow.server, slow.health, LONG_S, stop, delay_s=LONG_S))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    slow.release.set()
    async with grpc.aio.insecure_channel(f"localhost:{slow.port}") as late:
        assert await call(late) == Empty()
    assert not draining.done()
    stop.ask("the test is over")  # the second request: the drain waits no longer
    assert await watching.read() is grpc.aio.EOF
    await draining


async def test_there_is_no_delay_if_no_client_asked_for_health(slow: SlowServer) -> None:
    await drain(slow.server, slow.health, LONG_S, StopRequest(), delay_s=LONG_S)


async def test_a_drain_with_nothing_to_finish_needs_no_second_signal(slow: SlowServer) -> None:
    stop = StopRequest()
    stop.ask("test")
    await drain(slow.server, slow.health, LONG_S, stop)
    assert stop.asked


def test_sigterm_unwinds_the_stack() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, sigterm_as_exit():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
