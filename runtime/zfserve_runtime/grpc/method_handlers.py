"""Reads gRPC's handler of a method, and builds a handler with another behaviour from it.

`server` uses it for all four kinds of methods: unary or streaming requests, unary or streaming responses.
"""

import inspect
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = Sequence[tuple[str, str | bytes]]
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only


def behaviour_of(handler: MethodHandler) -> Any:
    """Returns the function that serves a call."""
    return getattr(handler, _kind(bool(handler.request_streaming), bool(handler.response_streaming)))


def wrapped(handler: MethodHandler, behaviour: Any, deserialize: Any, *, request_streaming: bool) -> MethodHandler:
    """Returns a handler like `handler` that serves calls with `behaviour`.

    Args:
        deserialize: turns bytes into a request.
        request_streaming: True to take a stream of requests, even if `handler` takes a single request.
    """
    make: Any = getattr(grpc, f"{_kind(request_streaming, bool(handler.response_streaming))}_rpc_method_handler")
    made: MethodHandler = make(behaviour, deserialize, handler.response_serializer)
    return made


async def write_all(served: Any, context: Context) -> None:
    """Writes the responses of a streaming behaviour.

    Args:
        served: what the behaviour returned: an asynchronous iterator of responses, or a coroutine that writes them.
    """
    if inspect.isawaitable(served):
        await served
        return
    async with aclosing(served) as messages:
        async for message in messages:
            await context.write(message)


def metadata_of(context: Context) -> Metadata:
    """Returns the metadata that the caller sent."""
    metadata: Any = context.invocation_metadata()  # the stubs have a class here that only clients are given
    return metadata or ()


def _kind(request_streaming: bool, response_streaming: bool) -> str:
    return f"{'stream' if request_streaming else 'unary'}_{'stream' if response_streaming else 'unary'}"
