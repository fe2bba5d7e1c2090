"""The worker as the service sees it: paired by fingerprint, watched, and asked for projections. Built by `app`.

The one file that knows how a call to the worker can fail.
"""

import asyncio
import enum
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, suppress
from typing import TypeVar

import grpc
from zfserve_protos.metadata import REQUEST_ID_KEY
from zfserve_protos.methods import WORKER_PROJECT
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime.errors import (
    DeadlineExceeded,
    EngineFailed,
    ServiceError,
    ShuttingDown,
    WorkerMismatch,
    WorkerUnavailable,
)
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.request_id import current_request_id
from zfserve_runtime.grpc.status import from_call_error
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.tracing import outgoing_call

logger = logging.getLogger(__name__)

M = TypeVar("M")

_RETRY_AFTER_S = 2.0
"""A worker that is restarted at once is back in about this time: importing torch and loading the weights."""

_PAUSE_S = 1.0
"""Between two questions to a worker that is up and does not answer them, or lacks the weights that are asked for."""

_LOOK_S = 0.1
"""Between two looks at the state of the channel."""

_RENEW_S = 60.0
"""Between two looks for a new channel, while there is a worker; else they come every `_PAUSE_S`."""

_FRESH_S = 10.0
"""Without any worker; then a fresh channel takes the place of this one, whose resolver asks for a name that was not
there ever more seldom, up to two minutes apart."""

_TRIES = 3
"""Of a projection that meets workers without its network: others may hold it."""

_DESCRIBE_S = 60.0
"""Time for a worker to say which weights it holds, once it has loaded those that it lacked."""


class Pairing(enum.Enum):
    """MISMATCH: the worker lacks a network that is served."""

    DOWN = enum.auto()
    MISMATCH = enum.auto()
    READY = enum.auto()


class WorkerClient:
    """Forwards projections to the workers behind `channel`, which it does not own.

    The channel asks each worker for its health (gRFC A17) and calls only those that serve: while one of several stops,
    the others go on, and all that has to be known here is whether there is any.

    A network that classifies is known by its fingerprint; a worker that does not hold it is never asked to project it.

    Args:
        channel: with `grpc_options.worker_channel_options`.
        longest_s: bound on one projection request whose caller set no deadline.
        on_change: called with whether projections of all that is served can be answered, whenever that changes.
        persist_s: between two questions for weights that the worker lacks, where nobody asks for projections.
        renew_s: between two calls of `renew_channel`, while there is a worker.
        fresh_s: without any, until a fresh channel takes the place of the one that finds none.
        renew_channel: a channel to use in place of the one before, or None; given whether any fresh one will do.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metrics: Metrics,
        longest_s: float,
        on_change: Callable[[bool], None],
        persist_s: float = 5.0,
        renew_s: float = _RENEW_S,
        fresh_s: float = _FRESH_S,
        renew_channel: Callable[[bool], grpc.aio.Channel | None] = lambda fresh: None,
    ) -> None:
        self._use(channel)
        self._fresh_s = fresh_s
        self._metrics = metrics
        self._longest_s = longest_s
        self._on_change = on_change
        self._persist_s = persist_s
        self._renew_s = renew_s
        self._renew_channel = renew_channel
        self._served: frozenset[str] = frozenset()
        self._down = asyncio.Event()  # set while no worker serves
        self._down.set()
        self._held: frozenset[str] = frozenset()  # by the worker that answered last
        self._asking = asyncio.Lock()
        self._lacking = asyncio.Event()  # set while the worker is up and lacks what is served
        self._asked_s = -math.inf
        self._pairing = Pairing.DOWN
        for state in Pairing:
            metrics.worker_pairing.labels(state.name.lower()).set(state is self._pairing)

    @property
    def ready(self) -> bool:
        return self._pairing is Pairing.READY

    @property
    def _up(self) -> bool:
        return not self._down.is_set()

    def holds(self, fingerprint: str) -> bool:
        """Whether the worker can project that network."""
        return self._up and fingerprint in self._held

    async def serve(self, fingerprints: Collection[str]) -> None:
        """What is served from now on. A worker that is up has loaded it when this returns, where it can."""
        self._served = frozenset(fingerprints)
        if self._up:
            with suppress(grpc.aio.AioRpcError, EngineFailed):  # `watch` hears of a worker that went away
                await self._ask()
        self._settle()

    async def require(self, fingerprint: str) -> None:
        """Raises WorkerUnavailable or WorkerMismatch where that network cannot be projected now."""
        lacking = self._up and fingerprint not in self._held
        if lacking and time.monotonic() - self._asked_s >= _PAUSE_S:
            await self.serve(self._served)  # it may have seen a new version later than this server did
        if not self._up:
            raise _unavailable()
        if fingerprint not in self._held:
            raise _mismatch()

    async def watch(self) -> None:
        """Follow the workers' health and pair with them whenever one comes up. Runs until cancelled."""
        while True:
            async with asyncio.TaskGroup() as tasks:
                following = [tasks.create_task(self._follow(self._channel)), tasks.create_task(self._persist())]
                while (channel := self._renew_channel(self._is_stale())) is None:
                    await self._until_next_look()
                self._use(channel)  # at once, as the one before takes no more calls
                for task in following:
                    task.cancel()

    def _use(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._lost_s = time.monotonic()  # when the last worker went, or this channel was opened
        self._worker = worker_pb2_grpc.WorkerServiceStub(channel)

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        while True:
            state = channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                try:
                    await self._ask()
                except (grpc.aio.AioRpcError, EngineFailed) as error:
                    logger.info("the worker cannot be asked", extra={"error": _in_short(error)})
                    self._be(up=False)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                self._be(up=True)
            elif state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                self._be(up=False)
            # Else it connects, as a worker asks it to now and then: calls wait for that, and nothing has changed.
            # gRPC's own wait cannot be cancelled: it ends with the channel, in a loop that may be closed by then.
            while channel.get_state(try_to_connect=True) is state:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)

    def _is_stale(self) -> bool:
        """Whether the channel has found nobody for long."""
        failing = self._channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return failing and time.monotonic() - self._lost_s >= self._fresh_s

    async def _until_next_look(self) -> None:
        if not self._up:
            await asyncio.sleep(min(self._renew_s, _PAUSE_S))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._renew_s):
                await self._down.wait()

    def _be(self, up: bool) -> None:
        if up or self._up:
            self._lost_s = time.monotonic()
        (self._down.clear if up else self._down.set)()
        self._settle()

    async def _persist(self) -> None:
        """Ask again, now and then, for weights that the worker lacks: its volume may be behind this server's."""
        while True:
            await self._lacking.wait()
            await asyncio.sleep(self._persist_s)
            if self._lacking.is_set():
                await self.serve(self._served)

    async def project(
        self, request: worker_pb2.ProjectRequest, deadline: Deadline
    ) -> AsyncGenerator[pb.ProjectResponse, None]:
        """The worker's projections, one by one. Closing the iterator early cancels the worker's call.

        Raises:
            WorkerUnavailable, WorkerMismatch: there is no worker, or it went away, or it holds other weights.
            DeadlineExceeded: the caller's deadline, or the longest time allowed, passed.
            ServiceError: whatever the worker answered, with an equal status.
        """
        await self.require(request.fingerprint)
        for tries_left in reversed(range(_TRIES)):
            begun = False
            async with aclosing(self._project_once(request, deadline)) as projections:
                try:
                    async for projection in projections:
                        begun = True
                        yield projection
                except WorkerMismatch:
                    if begun or not tries_left:
                        self._held -= {request.fingerprint}
                        self._settle()
                        raise
                else:
                    return

    async def _project_once(
        self, request: worker_pb2.ProjectRequest, deadline: Deadline
    ) -> AsyncGenerator[pb.ProjectResponse, None]:
        remaining_s = deadline.remaining_s()
        timeout_s = self._longest_s if remaining_s is None else min(self._longest_s, remaining_s)
        with outgoing_call(WORKER_PROJECT) as trace:
            metadata = ((REQUEST_ID_KEY, current_request_id()), *trace)
            call = self._worker.Project(request, timeout=timeout_s, metadata=metadata)
            try:
                async for message in call:
                    yield _understood(message).projection
            except grpc.aio.AioRpcError as error:
                raise _translate(error) from error
            finally:
                call.cancel()

    async def _ask(self) -> None:
        """Have the worker look for what is served, and learn what it holds."""
        async with self._asking:
            asked: frozenset[str] | None = None
            while asked != self._served:  # which may have changed while the worker looked
                self._asked_s, asked = time.monotonic(), self._served
                wanted = worker_pb2.DescribeRequest(fingerprints=sorted(asked))
                answer = await self._worker.Describe(wanted, timeout=_DESCRIBE_S)
                self._held = frozenset(model.fingerprint for model in _understood(answer).models)

    def _settle(self) -> None:
        before, self._pairing = self._pairing, self._pair()
        if self._pairing is not before:
            self._metrics.worker_pairing.labels(before.name.lower()).set(0)
            self._metrics.worker_pairing.labels(self._pairing.name.lower()).set(1)
            logger.info("the worker changed", extra={"pairing": self._pairing.name})
            if self._pairing is Pairing.MISMATCH:
                logger.error("the worker lacks weights", extra={"lacks": sorted(self._served - self._held)})
            (self._lacking.set if self._pairing is Pairing.MISMATCH else self._lacking.clear)()
            self._on_change(self.ready)

    def _pair(self) -> Pairing:
        if not self._up:
            return Pairing.DOWN
        return Pairing.READY if self._served <= self._held else Pairing.MISMATCH


def _understood(message: M | None) -> M:
    """Raises EngineFailed for None, which is what gRPC gives for bytes that are no such message."""
    if message is None:
        raise EngineFailed("the worker's answer cannot be read; try again")
    return message


def _in_short(error: grpc.aio.AioRpcError | EngineFailed) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else error.message


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
