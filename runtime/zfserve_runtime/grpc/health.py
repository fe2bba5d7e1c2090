"""Serves the standard gRPC health protocol, per service, and reflection.

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
"""The name that stands for the whole process in the protocol."""

MAX_WATCHES_PER_CONNECTION = 16
"""Watches never end and anyone may open them. Without a limit, strangers could fill the memory, at 26 KB a watch."""

_Status = health_pb2.HealthCheckResponse


class Health:
    """Implements the health service. Each of `services` starts as NOT_SERVING.

    grpcio-health-checking has a servicer for asyncio, but it keeps every `Watch` open for ever, so each watcher would
    delay a drain for its full grace period. This servicer ends them. Only the event loop's thread may use it.

    Attributes:
        queried: True once a client has asked for health. Such clients go elsewhere when the health changes.
    """

    def __init__(self, *services: str) -> None:
        self._statuses: dict[str, int] = dict.fromkeys(services, _Status.NOT_SERVING)
        self._changed = asyncio.Event()
        self._watches: Counter[str] = Counter()  # by connection
        self._draining = self._watches_ended = False
        self.queried = False

    def serving(self, *services: str) -> None:
        """Sets `services` to SERVING, unless the server drains."""
        self._set(services, _Status.SERVING)

    def not_serving(self, *services: str) -> None:
        """Sets `services` to NOT_SERVING."""
        self._set(services, _Status.NOT_SERVING)

    def is_serving(self, service: str) -> bool:
        """Returns True if `service` is SERVING."""
        return bool(self._statuses.get(service) == _Status.SERVING)

    def drain(self) -> None:
        """Sets all services to NOT_SERVING permanently, and tells the watchers."""
        self.not_serving(*self._statuses)
        self._draining = True

    def end_watches(self) -> None:
        """Ends all watches after their last status.

        Call it only once calls are refused: clients that balance by health would open their watches again.
        """
        self._watches_ended = True
        self._wake()

    @property
    def watches_ended(self) -> bool:
        """True once `end_watches` was called. From then on calls are refused."""
        return self._watches_ended

    async def wait_watches_ended(self) -> None:
        """Waits for `end_watches`. Then streams that never end by themselves must end."""
        while not self._watches_ended:
            await self._changed.wait()

    async def Check(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        self.queried = True
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
        self.queried = True
        peer = context.peer()
        # All connections of a unix socket have the same name, and few programs may open it.
        if self._watches[peer] >= MAX_WATCHES_PER_CONNECTION and not peer.startswith("unix:"):
            text = f"this connection watches {MAX_WATCHES_PER_CONNECTION} services already; end one of its watches"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._watches[peer] += 1
        try:
            async for status in self._follow(request.service):
                yield _Status(status=status)
        finally:
            self._watches[peer] -= 1
            if not self._watches[peer]:
                del self._watches[peer]

    async def _follow(self, service: str) -> AsyncIterator[int]:
        """Yields the present status of `service`, and each later one."""
        last: int | None = None
        while True:
            changed = self._changed  # this line comes before the status is read, so that no change is missed
            status = self._statuses.get(service, _Status.SERVICE_UNKNOWN)
            if status != last:
                yield status
                last = status
            elif self._watches_ended:
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
    """Registers the health service, and reflection for it and for `services` (full names)."""
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
