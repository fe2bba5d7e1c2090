"""The gRPC server of both processes, which surrounds every handler with what `interceptor` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from zfserve_protos.channel_options import Options
from zfserve_protos.methods import is_probe

from zfserve_runtime.access.access import Access
from zfserve_runtime.access.permissions import is_open
from zfserve_runtime.grpc.gate import Gate
from zfserve_runtime.grpc.interceptor import Call, Method
from zfserve_runtime.grpc.method_handlers import (
    Ask,
    Context,
    MethodHandler,
    behaviour_of,
    only_request,
    wrapped,
    write_all,
)
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.overload_log import OverloadLog
from zfserve_runtime.telemetry.tracing import NO_TRACERS, Tracers

Choice: TypeAlias = Callable[[], MethodHandler]
"""Of the handler for a call that comes now."""


class InterceptingServer(grpc.aio.Server):
    """A gRPC server that gives each call its request id, measures and logs it, and answers errors by
    `zfserve_runtime.grpc.status`.

    The id comes from the metadata `x-request-id` where that is sane, and goes back under the same name in the
    trailing metadata. Handlers must be `async def`, with or without `yield`.

    They are surrounded once, when they are added. gRPC's own interceptors are looked up by coroutines for every call,
    which cost a lone request 0.2 ms (`zfserve bench latency`).

    Args:
        tracers: start the spans of calls; by default no call is traced.
        access: says who may call what; None: anyone everything.
    """

    def __init__(
        self,
        metrics: Metrics,
        options: Options | None = None,
        tracers: Tracers = NO_TRACERS,
        access: Access | None = None,
    ) -> None:
        self._server = grpc.aio.server(options=options)
        self._access = access
        self._credentials: list[grpc.ServerCredentials] = []
        self._metrics = metrics
        self._tracers = tracers
        self._asked_first: dict[str, tuple[Ask, Callable[[], bool]]] = {}
        self._methods: dict[str, Method] = {}
        self._gate = Gate()
        self._overload_log = OverloadLog()

    def ask_first(self, method: str, ask: Ask, when: Callable[[], bool]) -> None:
        """Have `ask` look at each call of `method` (its full name). To be said before the first.

        Args:
            when: whether to ask about a call that comes now; what it takes stands between a lone client and its answer.
        """
        self._asked_first[method] = ask, when

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_Surrounded(each, self._choice) for each in generic_rpc_handlers])

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

    def _choice(self, handler: MethodHandler, method: str) -> Choice:
        plain = self._surround(handler, method)
        if method not in self._asked_first:
            return lambda: plain
        ask, when = self._asked_first[method]
        asking = self._surround(handler, method, ask)
        return lambda: asking if when() else plain

    def _surround(self, handler: MethodHandler, method: str, *asks: Ask) -> MethodHandler:
        """Where anything is asked first, a single request is read after that, so that of a call which is refused the
        server takes in no more than the metadata."""
        serve, takes_stream = behaviour_of(handler), bool(handler.request_streaming)
        writes_stream = bool(handler.response_streaming)
        if self._access is not None and not is_open(method):
            asks = (self._access.entrance(method), *asks)
            if takes_stream:
                serve = self._access.guard(serve, method)
        surround, reads = partial(Call, self._method(method)), bool(asks) and not takes_stream

        # A coroutine that writes, where a stream is wanted, not a generator: a client that goes away cancels the write,
        # and a generator suspended at its yield would hear of it only when it is collected.
        async def answer(request: Any, context: Context) -> Any:
            with surround(context) as surrounded:
                surrounded.check(asks)
                if reads:
                    request = await only_request(context)
                surrounded.accept(request)
                if writes_stream:
                    return await write_all(serve(request, context), context)
                return await serve(request, context)
            return await surrounded.answer()

        return wrapped(handler, answer, _deserializer(handler), request_streaming=reads or takes_stream)

    def _method(self, name: str) -> Method:
        """One for all calls of it, asked about first or not."""
        if name not in self._methods:
            tracers, gate = (NO_TRACERS, Gate()) if is_probe(name) else (self._tracers, self._gate)
            self._methods[name] = Method(name, gate, self._metrics, tracers, self._overload_log)
        return self._methods[name]


class _Surrounded(grpc.GenericRpcHandler):
    """`inner`, whose handlers are surrounded when they are first asked for."""

    def __init__(self, inner: grpc.GenericRpcHandler, choose: Callable[[MethodHandler, str], Choice]) -> None:
        self._inner = inner
        self._choose = choose
        self._choices: dict[str, Choice] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MethodHandler | None:
        method = handler_call_details.method
        if method not in self._choices:
            handler = self._inner.service(handler_call_details)
            if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
                return None
            self._choices[method] = self._choose(handler, method)
        return self._choices[method]()


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
