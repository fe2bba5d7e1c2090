"""What surrounds every call: an id, a clock, one line in the log, and errors turned into statuses.

Both processes' servers are of this kind; the services raise `ServiceError` and know nothing of statuses.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Never, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Gauge

from zfserve_runtime.access import Access, current_caller
from zfserve_runtime.errors import InvalidInput, ServiceError, ShuttingDown
from zfserve_runtime.grpc_options import Options
from zfserve_runtime.metrics import Metrics
from zfserve_runtime.request_id import REQUEST_ID_KEY, enter_request
from zfserve_runtime.status import to_status

if TYPE_CHECKING:
    from zfserve_runtime.otlp import CallTrace, Tracing

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET_SERVICES = ("/grpc.health.", "/grpc.reflection.")
_LINGER_S = 0.2
_LOOKS = 10
"""How long, and how often, to wait for calls that are on their way to a server that refuses them."""

_SERVER_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only


class InterceptingServer(grpc.aio.Server):
    """A gRPC server that gives each call its request id, measures and logs it, and answers errors by
    `zfserve_runtime.status`.

    The id comes from the metadata `x-request-id` where that is sane, and goes back under the same name in the
    trailing metadata. Handlers must be `async def`, with or without `yield`.

    They are surrounded once, when they are added. gRPC's own interceptors are looked up by coroutines for every call,
    which cost a lone request 0.2 ms (`zfserve bench latency`).

    Args:
        tracing: traces calls; None for none.
        access: says who may call what; None: anyone everything.
    """

    def __init__(
        self,
        metrics: Metrics,
        options: Options | None = None,
        tracing: Tracing | None = None,
        access: Access | None = None,
    ) -> None:
        self._server = grpc.aio.server(options=options)
        self._access = access
        self._credentials: list[grpc.ServerCredentials] = []
        self._metrics = metrics
        self._tracing = tracing
        self._gate = _Gate()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_Surrounded(each, self._surround) for each in generic_rpc_handlers])

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, MethodHandler]) -> None:
        """Leaves them to the generic handlers, which the stubs add too.

        grpc.aio waits for the next call of every registered method apart: that is slower for each method there is, and
        a call that comes in as the server stops, while the wait for another method ends, is never answered.
        """

    def add_insecure_port(self, address: str) -> int:
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        self._credentials.append(server_credentials)  # gRPC calls into them at each handshake, and keeps none of them
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        await self._server.start()

    def refuse_calls(self) -> None:
        """From now on answer every call UNAVAILABLE, but those for health and reflection, while those accepted go on.

        Unlike `stop`, which has gRPC end calls CANCELLED that it has taken in and no handler has seen yet.
        """
        self._gate.close()

    async def finished(self) -> None:
        """Once calls are refused: wait until none is under way, and those that come are refused and not cut off, but no
        longer than two seconds for who keeps coming. Calls for health and reflection do not count."""
        await self._gate.quiet()

    async def stop(self, grace: float | None) -> None:
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        return await self._server.wait_for_termination(timeout)

    def _surround(self, handler: MethodHandler, method: str) -> MethodHandler:
        if self._access is not None:
            handler = self._access.guard(handler, method)
        tracing = None if method.startswith(_QUIET_SERVICES) else self._tracing
        in_flight = self._metrics.in_flight.labels(method)
        gate = _Gate() if method.startswith(_QUIET_SERVICES) else self._gate

        def surround(context: Context) -> _Call:
            return _Call(method, context, gate, self._metrics, in_flight, tracing)

        return (
            self._stream_handler(handler, surround)
            if handler.response_streaming
            else self._unary_handler(handler, surround)
        )

    def _unary_handler(self, handler: MethodHandler, surround: Callable[[Context], _Call]) -> MethodHandler:
        serve: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        wrap = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )

        async def call(request: Any, context: Context) -> Any:
            with surround(context) as surrounded:
                surrounded.check()
                if isinstance(request, DecodeError):
                    raise request
                return await serve(request, context)
            return await surrounded.answer()

        return wrap(call, _deserializer(handler), handler.response_serializer)

    def _stream_handler(self, handler: MethodHandler, surround: Callable[[Context], _Call]) -> MethodHandler:
        serve: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
        wrap = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )

        # A coroutine that writes, not a generator: a client that goes away cancels the write, and a generator
        # suspended at its yield would hear of it only when it is collected.
        async def call(request: Any, context: Context) -> None:
            with surround(context) as surrounded:
                surrounded.check()
                if isinstance(request, DecodeError):
                    raise request
                if inspect.iscoroutinefunction(serve):
                    await serve(request, context)
                    return
                async with aclosing(serve(request, context)) as messages:
                    async for message in messages:
                        await context.write(message)
                return
            await surrounded.answer()

        return wrap(call, _deserializer(handler), handler.response_serializer)


class _Gate:
    """Counts the calls that are under way and, once closed, lets no more in."""

    def __init__(self) -> None:
        self._under_way = 0
        self._closed = False
        self._came = False  # to a closed gate, of late
        self._empty = asyncio.Event()

    def enter(self) -> None:
        self._under_way += 1

    def check(self) -> None:
        """Raises ShuttingDown where it is closed."""
        if self._closed:
            self._came = True
            raise ShuttingDown("the service is shutting down; try another instance, or again shortly")

    def leave(self) -> None:
        self._under_way -= 1
        if self._closed and not self._under_way:
            self._empty.set()

    def close(self) -> None:
        self._closed = True
        self._came = self._under_way > 0  # where some are served others may be on their way

    async def quiet(self) -> None:
        for _ in range(_LOOKS):
            while self._under_way:
                self._empty.clear()
                await self._empty.wait()
            if not self._came:
                return
            self._came = False
            await asyncio.sleep(_LINGER_S)


class _Surrounded(grpc.GenericRpcHandler):
    """`inner`, whose handlers are surrounded when they are first asked for."""

    def __init__(self, inner: grpc.GenericRpcHandler, surround: Callable[[MethodHandler, str], MethodHandler]) -> None:
        self._inner = inner
        self._surround = surround
        self._handlers: dict[str, MethodHandler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MethodHandler | None:
        method = handler_call_details.method
        if method not in self._handlers:
            handler = self._inner.service(handler_call_details)
            if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
                return None
            self._handlers[method] = self._surround(handler, method)
        return self._handlers[method]


class _Call:
    """One call, as a context around its handler. Errors that the client is to be told of end in it: `answer` follows.

    A class and not a generator, and what can wait until the answer is on its way does: all of this stands between the
    client and its answer.
    """

    def __init__(
        self,
        method: str,
        context: Context,
        gate: _Gate,
        metrics: Metrics,
        in_flight: Gauge,
        tracing: Tracing | None,
    ) -> None:
        self._method = method
        self._gate = gate
        self._context = context
        self._metrics = metrics
        self._in_flight = in_flight
        self._tracing = tracing
        self._trace: CallTrace | None = None
        self._request_id = _request_id_of(context)
        self._started_s = time.perf_counter()
        self._answer: ServiceError | None = None

    def __enter__(self) -> _Call:
        enter_request(self._request_id)  # each call is a task of its own, so nothing needs to be put back
        if self._tracing is not None:
            metadata = self._context.invocation_metadata()
            self._trace = self._tracing.begin_call(self._method, self._request_id, metadata)
        self._context.set_trailing_metadata([(REQUEST_ID_KEY, self._request_id)])
        self._in_flight.inc()
        self._gate.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        status = self._judge(error)
        duration_s = time.perf_counter() - self._started_s
        self._in_flight.dec()
        self._gate.leave()
        if error is None:
            asyncio.get_running_loop().call_soon(self._record, status, duration_s, None)
        else:  # measured and logged by the time the client knows
            self._record(status, duration_s, self._answer if isinstance(error, DecodeError) else error)
        return self._answer is not None

    def check(self) -> None:
        """Raises ShuttingDown where calls are refused."""
        self._gate.check()

    async def answer(self) -> Never:
        """End the call with the error that ended its handler."""
        assert self._answer is not None, "the handler's own answer was returned otherwise"
        status = to_status(self._answer, self._request_id)
        await self._context.abort(status.code, status.message, (*status.metadata(), (REQUEST_ID_KEY, self._request_id)))

    def _judge(self, error: BaseException | None) -> grpc.StatusCode:
        """The status of the call, and what to answer where the handler did not."""
        match error:
            case None:
                # The stubs leave out that a code not set is None.
                answered: grpc.StatusCode | None = self._context.code()
                return answered or grpc.StatusCode.OK
            case grpc.aio.AbortError():  # the service, the standard health service for one, answered for itself
                return self._context.code()
            case ServiceError():
                self._answer = error
                return error.status
            case DecodeError():
                self._answer = InvalidInput("the request is not the message that this method takes")
                return self._answer.status
            case asyncio.CancelledError() if _is_cancelled_by_grpc():
                return grpc.StatusCode.DEADLINE_EXCEEDED if self._deadline_passed() else grpc.StatusCode.CANCELLED
            case Exception() | asyncio.CancelledError():
                # Its own text may hold paths or data of others.
                text = f"internal error; quote request id {self._request_id} to the operator"
                self._answer = ServiceError(text)
        return grpc.StatusCode.INTERNAL

    def _deadline_passed(self) -> bool:
        """Whether the client gave up by its own deadline, of which its cancellation may bring the news early.

        gRPC rounds timeouts up by as much as 1 %, and the client's clock began before ours by the way of the request.
        """
        # The stubs leave out that a call without a deadline has None.
        remaining_s: float | None = self._context.time_remaining()
        if remaining_s is None:
            return False
        allotted_s = remaining_s + time.perf_counter() - self._started_s
        return remaining_s <= 0.01 * allotted_s + 0.05

    def _record(self, status: grpc.StatusCode, duration_s: float, error: BaseException | None) -> None:
        if self._trace is not None:
            self._trace.end(status.name, duration_s)
        self._metrics.requests.labels(self._method, status.name).inc()
        self._metrics.request_seconds.labels(self._method).observe(duration_s)
        if isinstance(error, ServiceError):
            self._metrics.refusals.labels(self._method, error.reason).inc()
        is_fault = status in _SERVER_FAULTS
        quiet = self._method.startswith(_QUIET_SERVICES)
        level = logging.ERROR if is_fault else logging.DEBUG if quiet else logging.INFO
        if not _log.isEnabledFor(level):
            return
        fields = {
            "request_id": self._request_id,
            "method": self._method,
            "status": status.name,
            "duration_ms": round(duration_s * 1e3, 3),
            "peer": self._context.peer(),
            **_earlier_attempts(self._context),
        }
        if caller := current_caller().name:
            fields["caller"] = caller
        if isinstance(error, ServiceError):
            fields |= {"reason": error.reason, "error": error.message}
        _log.log(level, "call", exc_info=error if is_fault else None, extra=fields)


def _deserializer(handler: MethodHandler) -> Any:
    """That of `handler`, which gives a DecodeError where gRPC would meet it before us: it would answer with its text,
    and log a traceback for whatever bytes a client likes to send."""
    deserialize: Any = handler.request_deserializer
    if handler.request_streaming or deserialize is None:
        return deserialize

    def request_or_error(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return request_or_error


def _request_id_of(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return f"{random.getrandbits(64):016x}"  # to tell calls apart, not to guard anything


def _earlier_attempts(context: Context) -> dict[str, str]:
    """For the log: how often gRPC's retries (gRFC A6) had made this call before; nothing where this is the first."""
    for key, value in context.invocation_metadata() or ():
        if key == "grpc-previous-rpc-attempts" and isinstance(value, str):
            return {"earlier_attempts": value}
    return {}


def _is_cancelled_by_grpc() -> bool:
    """Whether this task was told to stop; a CancelledError without that leaked out of something the service awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
