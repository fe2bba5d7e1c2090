"""Defines the gRPC server of both processes. It adds the interceptor, the authorizer and early checks to handlers.

`InterceptingServer._wrap` has the steps of a call in their order. The last step is the service's own method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from zfserve_protos.channel_options import Options
from zfserve_protos.methods import is_probe

from zfserve_runtime.access.authorizer import Authorizer
from zfserve_runtime.access.permissions import is_public
from zfserve_runtime.grpc.call_tracker import CallTracker
from zfserve_runtime.grpc.deferred_read import CallCheck, ConditionalCheck, read_request
from zfserve_runtime.grpc.interceptor import Call, Method
from zfserve_runtime.grpc.method_handlers import (
    Context,
    MethodHandler,
    behaviour_of,
    wrapped,
    write_all,
)
from zfserve_runtime.telemetry.log_limiter import LogLimiter
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.tracing import NO_TRACERS, Tracers

ChooseHandler: TypeAlias = Callable[[], MethodHandler]
"""Returns the handler for the next call of a method."""


class InterceptingServer(grpc.aio.Server):
    """A gRPC server that authorizes, measures, traces and logs each call, and turns errors into statuses.

    Each call has a request id. It comes from the metadata `x-request-id` if that is valid, and returns under the same
    key in the trailing metadata. Handlers must be `async def`, with or without `yield`.

    Each handler is wrapped once. gRPC looks up its own interceptors by coroutines for every call, which takes 0.2 ms of
    a lone request (`zfserve bench latency`).

    Args:
        metrics: counts and times the calls.
        options: the channel arguments.
        tracers: start the spans of calls. By default no call is traced.
        authorizer: decides who may call what. None: everyone may call everything.
    """

    def __init__(
        self,
        metrics: Metrics,
        options: Options | None = None,
        tracers: Tracers = NO_TRACERS,
        authorizer: Authorizer | None = None,
    ) -> None:
        self._server = grpc.aio.server(options=options)
        self._authorizer = authorizer
        self._credentials: list[grpc.ServerCredentials] = []
        self._metrics = metrics
        self._tracers = tracers
        self._early_checks: dict[str, ConditionalCheck] = {}
        self._methods: dict[str, Method] = {}
        self._calls = CallTracker()
        self._log_limiter = LogLimiter()

    def check_before_read(self, method: str, check: CallCheck, applies: Callable[[], bool]) -> None:
        """Runs `check` on calls of `method` before their request is read. Call it before the first call arrives.

        Args:
            method: its full name, "/package.Service/Method".
            check: raises an error to refuse the call.
            applies: returns True when the next call must be checked; see `ConditionalCheck`.
        """
        self._early_checks[method] = ConditionalCheck(check, applies)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Wraps and adds the handlers of a service."""
        self._server.add_generic_rpc_handlers(
            [_InterceptedHandlers(each, self._choose) for each in generic_rpc_handlers]
        )

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, MethodHandler]) -> None:
        """Does nothing, because the stubs add the same handlers as generic handlers too.

        grpc.aio waits separately for the next call of each registered method, so every method costs time. There is also
        a fault: while the server stops, a call may arrive when the wait for another method ends, and gRPC never answers
        it.
        """

    def add_insecure_port(self, address: str) -> int:
        """Listens on `address` without TLS, and returns the port."""
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listens on `address` with TLS, and returns the port."""
        self._credentials.append(server_credentials)  # gRPC uses them at each handshake, but keeps no reference
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        """Starts to serve calls."""
        await self._server.start()

    def refuse_calls(self) -> None:
        """Answers UNAVAILABLE to new calls from now on, except those for health and reflection. Accepted calls go on.

        `stop` is different: gRPC answers CANCELLED to calls that it has received and no handler has seen yet.
        """
        self._calls.refuse_new()

    async def drained(self) -> None:
        """Waits until no call is in flight and no new call arrives. Call it after `refuse_calls`.

        Late calls are refused, not cut off, but a client that keeps calling delays this by at most two seconds. Calls
        for health and reflection do not count.
        """
        await self._calls.wait_drained()

    async def stop(self, grace: float | None) -> None:
        """Stops the server. After `grace` seconds it cancels the calls in flight. None cancels them at once."""
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Waits until the server has stopped. Returns False after `timeout` seconds."""
        return await self._server.wait_for_termination(timeout)

    def _choose(self, handler: MethodHandler, method: str) -> ChooseHandler:
        """Wraps `handler` once for all calls, and a second time with the early check of `method` if it has one."""
        unchecked = self._wrap(handler, method)
        if method not in self._early_checks:
            return lambda: unchecked
        early = self._early_checks[method]
        checked = self._wrap(handler, method, early.check)
        return lambda: checked if early.applies() else unchecked

    def _wrap(self, handler: MethodHandler, method: str, *checks: CallCheck) -> MethodHandler:
        """Returns a handler that runs `checks` and serves the call with `handler`.

        With any check, it reads a single request after the checks; see `deferred_read`.
        """
        serve, takes_stream = behaviour_of(handler), bool(handler.request_streaming)
        writes_stream = bool(handler.response_streaming)
        if self._authorizer is not None and not is_public(method):
            checks = (self._authorizer.call_check(method), *checks)
            if takes_stream:
                serve = self._authorizer.check_each_request(serve, method)
        begin_call, defers_read = partial(Call, self._method(method)), bool(checks) and not takes_stream

        # This coroutine writes a stream of responses itself. If a client goes away, gRPC then cancels the write. A
        # generator that is suspended at its yield would learn of that only when it is garbage-collected.
        async def answer(request: Any, context: Context) -> Any:
            with begin_call(context) as call:
                call.check(checks)
                if defers_read:
                    request = await read_request(context)
                call.accept(request)
                if writes_stream:
                    return await write_all(serve(request, context), context)
                return await serve(request, context)
            return await call.answer()

        return wrapped(handler, answer, _deserializer(handler), request_streaming=defers_read or takes_stream)

    def _method(self, name: str) -> Method:
        """Returns what all calls of one method share, whether they are checked early or not."""
        if name not in self._methods:
            tracers, calls = (NO_TRACERS, CallTracker()) if is_probe(name) else (self._tracers, self._calls)
            self._methods[name] = Method(name, calls, self._metrics, tracers, self._log_limiter)
        return self._methods[name]


class _InterceptedHandlers(grpc.GenericRpcHandler):
    """Holds the handlers of `inner`, and wraps each when its method is first called."""

    def __init__(self, inner: grpc.GenericRpcHandler, choose: Callable[[MethodHandler, str], ChooseHandler]) -> None:
        self._inner = inner
        self._choose = choose
        self._choices: dict[str, ChooseHandler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MethodHandler | None:
        method = handler_call_details.method
        if method not in self._choices:
            handler = self._inner.service(handler_call_details)
            if handler is None:  # gRPC answers UNIMPLEMENTED for a method that does not exist
                return None
            self._choices[method] = self._choose(handler, method)
        return self._choices[method]()


def _deserializer(handler: MethodHandler) -> Any:
    """Wraps the deserializer of `handler`. The result returns a DecodeError and does not raise it.

    If it raised, gRPC would answer with the error's text, and log a traceback for any bytes that a client sends.
    """
    deserialize: Any = handler.request_deserializer
    if handler.request_streaming or deserialize is None:
        return deserialize

    def request_or_error(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return request_or_error
