"""The worker as the service sees it: paired by fingerprint, watched, and asked for projections. Built by `app`.

The one file that knows how a call to the worker can fail.
"""

import asyncio
import enum
import logging
from collections.abc import AsyncGenerator, Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime.deadline import Deadline
from zfserve_runtime.errors import (
    DeadlineExceeded,
    EngineFailed,
    ServiceError,
    ShuttingDown,
    WorkerMismatch,
    WorkerUnavailable,
)
from zfserve_runtime.health import WORKER_SERVICE
from zfserve_runtime.request_id import REQUEST_ID_KEY, current_request_id
from zfserve_runtime.status import from_call_error
from zfserve_runtime.tracing import calling

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 2.0
"""A worker that is restarted at once is back in about this time: importing torch and loading the weights."""

_PAUSE_S = 1.0
"""Between two attempts to watch a worker that answers but refuses; one that cannot be reached is awaited instead."""

_DESCRIBE_S = 10.0
"""Time for a worker to say which weights it holds."""


class Pairing(enum.Enum):
    DOWN = enum.auto()
    MISMATCH = enum.auto()
    READY = enum.auto()


class WorkerClient:
    """Forwards projections to the worker behind `channel`, which it does not own.

    Args:
        fingerprint: of the network that classifies; a worker with another is never asked.
        longest_s: bound on one projection request whose caller set no deadline.
        on_change: called with whether projections can be answered, whenever that changes.
    """

    def __init__(
        self, channel: grpc.aio.Channel, fingerprint: str, longest_s: float, on_change: Callable[[bool], None]
    ) -> None:
        self._worker = worker_pb2_grpc.WorkerServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._fingerprint = fingerprint
        self._longest_s = longest_s
        self._on_change = on_change
        self._pairing = Pairing.DOWN

    @property
    def ready(self) -> bool:
        return self._pairing is Pairing.READY

    def check(self) -> None:
        """Raises WorkerUnavailable or WorkerMismatch where a projection cannot be answered now."""
        if self._pairing is Pairing.DOWN:
            raise _unavailable()
        if self._pairing is Pairing.MISMATCH:
            raise _mismatch()

    async def watch(self) -> None:
        """Follow the worker's health and pair with it whenever it comes up. Runs until cancelled."""
        request = health_pb2.HealthCheckRequest(service=WORKER_SERVICE)
        while True:
            try:
                # Waits in the channel, which reconnects by itself, for as long as the worker is away.
                async for health in self._health.Watch(request, wait_for_ready=True):
                    serving = health.status == health_pb2.HealthCheckResponse.SERVING
                    self._enter(await self._pair() if serving else Pairing.DOWN)
            except grpc.aio.AioRpcError as error:
                logger.info("lost the worker", extra={"status": error.code().name})
            self._enter(Pairing.DOWN)
            await asyncio.sleep(_PAUSE_S)

    async def project(
        self, request: worker_pb2.ProjectRequest, deadline: Deadline
    ) -> AsyncGenerator[pb.ProjectResponse, None]:
        """The worker's projections, one by one. Closing the iterator early cancels the worker's call.

        Raises:
            WorkerUnavailable, WorkerMismatch: there is no worker, or it went away, or it holds other weights.
            DeadlineExceeded: the caller's deadline, or the longest time allowed, passed.
            ServiceError: whatever the worker answered, with an equal status.
        """
        self.check()
        remaining_s = deadline.remaining_s()
        timeout_s = self._longest_s if remaining_s is None else min(self._longest_s, remaining_s)
        with calling("zfserve.worker.v1.WorkerService/Project") as trace:
            metadata = ((REQUEST_ID_KEY, current_request_id()), *trace)
            call = self._worker.Project(request, timeout=timeout_s, metadata=metadata)
            try:
                async for message in call:
                    yield message.projection
            except grpc.aio.AioRpcError as error:
                raise _translate(error) from error
            finally:
                call.cancel()

    async def _pair(self) -> Pairing:
        answer = await self._worker.Describe(worker_pb2.DescribeRequest(), timeout=_DESCRIBE_S)
        held = [model.fingerprint for model in answer.models]
        if self._fingerprint in held:
            return Pairing.READY
        logger.error("the worker holds other weights", extra={"held": held, "served": self._fingerprint})
        return Pairing.MISMATCH

    def _enter(self, pairing: Pairing) -> None:
        if pairing is not self._pairing:
            self._pairing = pairing
            logger.info("the worker changed", extra={"pairing": pairing.name})
            self._on_change(self.ready)


def _translate(error: grpc.aio.AioRpcError) -> ServiceError:
    """A failed call to the worker in the words of our own caller."""
    own = from_call_error(error)
    if isinstance(own, ShuttingDown):  # the worker is, not this service
        return _unavailable()
    if own is not None:
        return own
    code = error.code()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return _unavailable()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the worker needs longer than this call allows; ask for fewer maps or allow more time")
    logger.error("the worker failed", extra={"status": code.name, "details": error.details()})
    return EngineFailed("the worker failed on this projection; try again")


def _unavailable() -> ServiceError:
    return WorkerUnavailable(
        f"the projection worker is not available at present; try again in {_RETRY_AFTER_S:.0f} s",
        retry_after_s=_RETRY_AFTER_S,
    )


def _mismatch() -> ServiceError:
    return WorkerMismatch("the projection worker holds other weights than this server; start both on the same bundle")
