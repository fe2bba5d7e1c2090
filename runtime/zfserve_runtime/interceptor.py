"""What surrounds every call: an id, a clock, one line in the log, and errors turned into statuses.

Installed first on the servers of both processes; the services raise `ServiceError` and know nothing of statuses.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Never, TypeAlias

import grpc

from zfserve_runtime.errors import ServiceError
from zfserve_runtime.metrics import Metrics
from zfserve_runtime.status import to_status

REQUEST_ID_KEY = "x-request-id"

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET_SERVICES = ("/grpc.health.", "/grpc.reflection.")
_SERVER_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

_log = logging.getLogger(__name__)
_request_id: ContextVar[str] = ContextVar("request_id", default="")

Context = grpc.aio.ServicerContext[Any, Any]
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the stubs only


def current_request_id() -> str:
    """The id of the call being served in this task, to log it or to pass it on; "" outside a call."""
    return _request_id.get()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call its request id, measures and logs it, and answers errors by `zfserve_runtime.status`.

    The id comes from the metadata `x-request-id` where that is sane, and goes back under the same name in the
    trailing metadata. Handlers must be `async def`, with or without `yield`.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler | None:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return None
        method = handler_call_details.method
        if handler.response_streaming:
            return self._stream_handler(handler, method)
        return self._unary_handler(handler, method)

    def _unary_handler(self, handler: MethodHandler, method: str) -> MethodHandler:
        serve: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        wrap = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )

        async def call(request: Any, context: Context) -> Any:
            async with self._surround(method, context):
                return await serve(request, context)

        return wrap(call, handler.request_deserializer, handler.response_serializer)

    def _stream_handler(self, handler: MethodHandler, method: str) -> MethodHandler:
        serve: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
        wrap = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )

        # A coroutine that writes, not a generator: a client that goes away cancels the write, and a generator
        # suspended at its yield would hear of it only when it is collected.
        async def call(request: Any, context: Context) -> None:
            async with self._surround(method, context):
                if inspect.iscoroutinefunction(serve):
                    await serve(request, context)
                    return
                async with aclosing(serve(request, context)) as messages:
                    async for message in messages:
                        await context.write(message)

        return wrap(call, handler.request_deserializer, handler.response_serializer)

    @asynccontextmanager
    async def _surround(self, method: str, context: Context) -> AsyncIterator[None]:
        call = _Call.of(method, context)
        _request_id.set(call.request_id)  # each call is a task of its own, so nothing needs to be put back
        context.set_trailing_metadata([(REQUEST_ID_KEY, call.request_id)])
        in_flight = self._metrics.in_flight.labels(method)
        in_flight.inc()
        status = grpc.StatusCode.OK
        failure: BaseException | None = None
        answer: ServiceError | None = None
        try:
            yield
            # The stubs leave out that a code not set is None.
            answered: grpc.StatusCode | None = context.code()
            status = answered or status
        except grpc.aio.AbortError:  # the service, the standard health service for one, answered for itself
            status = context.code()
            raise
        except ServiceError as error:
            status, failure, answer = error.status, error, error
        except asyncio.CancelledError as error:
            if _is_cancelled_by_grpc():
                status = grpc.StatusCode.DEADLINE_EXCEEDED if call.deadline_passed() else grpc.StatusCode.CANCELLED
                raise
            status, failure, answer = grpc.StatusCode.INTERNAL, error, call.unexpected()
        except Exception as error:
            status, failure, answer = grpc.StatusCode.INTERNAL, error, call.unexpected()
        finally:
            in_flight.dec()
            self._record(call, status, failure)
        if answer is not None:  # measured and logged by the time the client knows
            await call.answer(answer)

    def _record(self, call: _Call, status: grpc.StatusCode, failure: BaseException | None) -> None:
        duration_s = time.perf_counter() - call.started_s
        self._metrics.requests.labels(call.method, status.name).inc()
        self._metrics.request_seconds.labels(call.method).observe(duration_s)
        is_fault = status in _SERVER_FAULTS
        quiet = call.method.startswith(_QUIET_SERVICES)
        level = logging.ERROR if is_fault else logging.DEBUG if quiet else logging.INFO
        if not _log.isEnabledFor(level):
            return
        fields = {
            "request_id": call.request_id,
            "method": call.method,
            "status": status.name,
            "duration_ms": round(duration_s * 1e3, 3),
            "peer": call.context.peer(),
        }
        if isinstance(failure, ServiceError):
            fields |= {"reason": failure.reason, "error": failure.message}
        _log.log(level, "call", exc_info=failure if is_fault else None, extra=fields)


@dataclass(frozen=True)
class _Call:
    """One call: who it is and when it began."""

    method: str
    context: Context
    request_id: str
    started_s: float
    allotted_s: float | None

    @classmethod
    def of(cls, method: str, context: Context) -> _Call:
        # The stubs leave out that a call without a deadline has None.
        allotted_s: float | None = context.time_remaining()
        return cls(method, context, _request_id_of(context), time.perf_counter(), allotted_s)

    def deadline_passed(self) -> bool:
        """Whether the client gave up by its own deadline, of which its cancellation may bring the news early.

        gRPC rounds timeouts up by as much as 1 %, and the client's clock began before ours by the way of the request.
        """
        if self.allotted_s is None:
            return False
        return self.context.time_remaining() <= 0.01 * self.allotted_s + 0.05

    async def answer(self, error: ServiceError) -> Never:
        status = to_status(error, self.request_id)
        await self.context.abort(status.code, status.message, (status.metadata(), (REQUEST_ID_KEY, self.request_id)))

    def unexpected(self) -> ServiceError:
        """What the client hears of any other exception, whose own text may hold paths or data of others."""
        return ServiceError(f"internal error; quote request id {self.request_id} to the operator")


def _request_id_of(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def _is_cancelled_by_grpc() -> bool:
    """Whether this task was told to stop; a CancelledError without that leaked out of something the service awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
