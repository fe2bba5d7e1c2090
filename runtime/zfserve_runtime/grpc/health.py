"""Health by the standard gRPC protocol, per service, and reflection.

Source: github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

SERVER = ""
"""The whole process, as the protocol names it."""

MAX_WATCHES_PER_CONNECTION = 16
"""They never end and anyone may ask for them: unbounded, strangers could fill the memory with them, at 26 KB each."""

_Status = health_pb2.HealthCheckResponse


class Health:
    """The health service. Every name it is built with starts NOT_SERVING.

    Attributes:
        asked: whether anyone ever asked for it, and so may turn elsewhere when it changes.

    grpcio-health-checking's own asyncio servicer keeps every `Watch` open for ever, so that each watcher would hold
    up a drain for its full grace period; this one ends them. Use from the event loop's thread only.
    """

    def __init__(self, *services: str) -> None:
        self._statuses: dict[str, int] = dict.fromkeys(services, _Status.NOT_SERVING)
        self._changed = asyncio.Event()
        self._watches: Counter[str] = Counter()  # by the connection
        self._draining = self._ended = False
        self.asked = False

    def serving(self, *services: str) -> None:
        self._set(services, _Status.SERVING)

    def not_serving(self, *services: str) -> None:
        self._set(services, _Status.NOT_SERVING)

    def is_serving(self, service: str) -> bool:
        return bool(self._statuses.get(service) == _Status.SERVING)

    def drain(self) -> None:
        """Everything NOT_SERVING for good; watchers are told so."""
        self.not_serving(*self._statuses)
        self._draining = True

    def end_watches(self) -> None:
        """End all streams, once their watchers were told the last status. Not before calls are refused: clients that
        balance by health would open them anew."""
        self._ended = True
        self._wake()

    @property
    def ended(self) -> bool:
        """Whether `end_watches` was called: from then on calls are refused."""
        return self._ended

    async def wait_end(self) -> None:
        """Until then: calls that never end by themselves now have to."""
        while not self._ended:
            await self._changed.wait()

    async def Check(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        self.asked = True
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        return _Status(status=status)

    async def List(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        statuses = {service: _Status(status=status) for service, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        self.asked = True
        peer = context.peer()
        # The connections of a unix socket all have one name, and few may open it.
        if self._watches[peer] >= MAX_WATCHES_PER_CONNECTION and not peer.startswith("unix:"):
            text = f"this connection watches {MAX_WATCHES_PER_CONNECTION} services already; end one of its watches"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._watches[peer] += 1
        try:
            async for status in self._statuses_of(request.service):
                yield _Status(status=status)
        finally:
            self._watches[peer] -= 1
            if not self._watches[peer]:
                del self._watches[peer]

    async def _statuses_of(self, service: str) -> AsyncIterator[int]:
        """The present one, and each that follows."""
        told: int | None = None
        while True:
            changed = self._changed  # taken before the status is read, so that no change in between is missed
            status = self._statuses.get(service, _Status.SERVICE_UNKNOWN)
            if status != told:
                yield status
                told = status
            elif self._ended:
                return
            else:
                await changed.wait()

    def _set(self, services: Iterable[str], status: int) -> None:
        if self._draining:
            return
        self._statuses.update(dict.fromkeys(services, status))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def add_health_and_reflection(server: grpc.aio.Server, health: Health, *services: str) -> None:
    """Register the health service, and reflection over it and `services` (full names)."""
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
