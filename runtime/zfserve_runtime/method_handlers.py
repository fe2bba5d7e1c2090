"""What gRPC calls for a method, taken apart and put together anew, whichever of its four kinds it is: for those that
surround handlers, `intercepting_server` and `access`."""

import asyncio
import inspect
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from zfserve_runtime.errors import InvalidInput

Context = grpc.aio.ServicerContext[Any, Any]
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only

_NEWS_S = 0.05
"""gRPC says that there is no more to read when a caller went away, too, and only then that it did."""


def behaviour_of(handler: MethodHandler) -> Any:
    """The function that serves a call."""
    return getattr(handler, _kind(bool(handler.request_streaming), bool(handler.response_streaming)))


def wrapped(
    handler: MethodHandler, behaviour: Any, deserialize: Any, *, request_streaming: bool | None = None
) -> MethodHandler:
    """A handler like `handler` that serves by `behaviour`; with a stream of requests in place of one, if wanted."""
    streaming = bool(handler.request_streaming) if request_streaming is None else request_streaming
    make: Any = getattr(grpc, f"{_kind(streaming, bool(handler.response_streaming))}_rpc_method_handler")
    made: MethodHandler = make(behaviour, deserialize, handler.response_serializer)
    return made


async def write_all(served: Any, context: Context) -> None:
    """Write what a behaviour with a stream of responses gives: it is a coroutine that writes, or an iterator."""
    if inspect.isawaitable(served):
        await served
        return
    async with aclosing(served) as messages:
        async for message in messages:
            await context.write(message)


def asking_first(handler: MethodHandler, ask: Callable[[Context], None]) -> MethodHandler:
    """`handler`, called only where `ask` raises nothing; a single request is read after that, so that of a call that is
    refused the server takes in no more than the metadata. On the wire it is the same as a stream of one."""
    serve = behaviour_of(handler)

    async def asked(requests: Any, context: Context) -> Any:
        ask(context)
        return requests if handler.request_streaming else await _only_request(context)

    async def answer(requests: Any, context: Context) -> Any:
        return await serve(await asked(requests, context), context)

    async def stream(requests: Any, context: Context) -> None:
        await write_all(serve(await asked(requests, context), context), context)

    behaviour = stream if handler.response_streaming else answer
    return wrapped(handler, behaviour, handler.request_deserializer, request_streaming=True)


async def _only_request(context: Context) -> Any:
    request = await context.read()  # by way of the stream of requests it would take two more steps of coroutines
    if request is grpc.aio.EOF:
        await asyncio.sleep(_NEWS_S)  # where the caller has gone this task is cancelled
        raise InvalidInput("the call ended before its request was sent")
    return request


def _kind(request_streaming: bool, response_streaming: bool) -> str:
    return f"{'stream' if request_streaming else 'unary'}_{'stream' if response_streaming else 'unary'}"
