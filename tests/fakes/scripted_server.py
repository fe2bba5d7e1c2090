"""Runs a server with the real interceptor, whose methods run a function of the test, and reads its errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.telemetry.metrics import Metrics

Behaviour = Callable[[], Awaitable[str]]


class ScriptedServer:
    """Runs a server with one unary and one streaming method, and a channel to it.

    Attributes:
        behaviour: called by both methods. It returns the answer or raises. The stream first sends one other message.
        finished: set once a method has ended.
        target: the address of the server.
    """

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

    async def __aenter__(self) -> "ScriptedServer":
        self._server = InterceptingServer(self.metrics)
        encoding: Any = {"request_deserializer": Empty.FromString, "response_serializer": StringValue.SerializeToString}
        unary: Any = self._unary
        stream: Any = self._stream
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary, **encoding),
            "Stream": grpc.unary_stream_rpc_method_handler(stream, **encoding),
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Scripted", methods)])
        port = self._server.add_insecure_port("localhost:0")
        await self._server.start()
        self.target = f"localhost:{port}"
        self.channel = grpc.aio.insecure_channel(self.target)
        self.unary, self.stream = stubs(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self._server.stop(None)

    def count(self, status: str, method: str = "Unary") -> float:
        labels = {"method": f"/test.Scripted/{method}", "status": status}
        return self.metrics.registry.get_sample_value("zfserve_requests_total", labels) or 0.0


def stubs(channel: grpc.aio.Channel) -> tuple[Any, Any]:
    """Returns the unary and the streaming method of a ScriptedServer."""
    return (
        channel.unary_unary("/test.Scripted/Unary", Empty.SerializeToString, StringValue.FromString),
        channel.unary_stream("/test.Scripted/Stream", Empty.SerializeToString, StringValue.FromString),
    )


def raising(error: BaseException) -> Behaviour:
    async def behaviour() -> str:
        raise error

    return behaviour


async def failure_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def failure_at_the_end_of(call: Any) -> grpc.aio.AioRpcError:
    """Returns the failure of a call to either method. The stream sends a message first."""
    if isinstance(call, grpc.aio.UnaryStreamCall):
        await call.read()
        return await failure_of(call.read())
    return await failure_of(call)


def details_of(failure: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Returns the google.rpc details of a failure by the names of their types."""
    status = rpc_status.from_call(failure)
    assert status is not None
    found = {}
    for detail in status.details:
        name = detail.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert detail.Unpack(found[name])
    return found
