"""What gRPC calls for a method, taken apart and put together anew, whichever of its four kinds it is: for what
surrounds handlers, `intercepting_server`; and what is asked of a call before, by `access` for one."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from zfserve_runtime.errors import InvalidInput

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = Sequence[tuple[str, str | bytes]]
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only
Ask = Callable[[Context, Metadata], None]
"""Looks at a call before its request is read: what it raises ends the call. Is given the call's metadata, which gRPC
would copy out once more."""

_NEWS_S = 0.05
"""gRPC says that there is no more to read when a caller went away, too, and only then that it did."""


def behaviour_of(handler: MethodHandler) -> Any:
    """The function that serves a call."""
    return getattr(handler, _kind(bool(handler.request_streaming), bool(handler.response_streaming)))


def wrapped(handler: MethodHandler, behaviour: Any, deserialize: Any, *, request_streaming: bool) -> MethodHandler:
    """A handler like `handler` that serves by `behaviour`; with a stream of requests in place of one, if wanted."""
    make: Any = getattr(grpc, f"{_kind(request_streaming, bool(handler.response_streaming))}_rpc_method_handler")
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


def metadata_of(context: Context) -> Metadata:
    metadata: Any = context.invocation_metadata()  # the stubs have a class here that only clients are given
    return metadata or ()


async def only_request(context: Context) -> Any:
    """That of a method with one request, which is served as if it had a stream of them: on the wire it is the same."""
    request = await context.read()  # by way of the stream of requests it would take two more steps of coroutines
    if request is grpc.aio.EOF:
        await asyncio.sleep(_NEWS_S)  # where the caller has gone this task is cancelled
        raise InvalidInput("the call ended before its request was sent")
    return request


def _kind(request_streaming: bool, response_streaming: bool) -> str:
    return f"{'stream' if request_streaming else 'unary'}_{'stream' if response_streaming else 'unary'}"
