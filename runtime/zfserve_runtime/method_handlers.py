"""What gRPC calls for a method, taken apart and put together anew, whichever of its four kinds it is: for those that
surround handlers, `intercepting_server` and `access`."""

import inspect
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only


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


async def write_all(served: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Write what a behaviour with a stream of responses gives: it is a coroutine that writes, or an iterator."""
    if inspect.isawaitable(served):
        await served
        return
    async with aclosing(served) as messages:
        async for message in messages:
            await context.write(message)


def _kind(request_streaming: bool, response_streaming: bool) -> str:
    return f"{'stream' if request_streaming else 'unary'}_{'stream' if response_streaming else 'unary'}"
