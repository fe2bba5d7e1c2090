"""The client of the workers watches their health, pairs with them, and asks them for projections and explanations.

Built by `companion`.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, suppress
from dataclasses import dataclass

import grpc
from zfserve_protos.metadata import REQUEST_ID_KEY
from zfserve_protos.methods import WORKER_EXPLAIN, WORKER_PROJECT
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime.errors import EngineFailed, Unimplemented, WorkerMismatch
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.request_id import current_request_id
from zfserve_runtime.release import RELEASE
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.tracing import Metadata, outgoing_call

from zfserve_server.worker.call_errors import parsed, short_text, translate
from zfserve_server.worker.pairing import Pairing

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
"""Seconds between two Describe calls to a worker that does not answer them or lacks the requested weights."""

_STATE_POLL_S = 0.1
"""Seconds between two reads of the channel's state."""

_MAX_ATTEMPTS = 3
"""The largest number of attempts at a call. A worker may lack the network while another worker holds it."""

_DESCRIBE_TIMEOUT_S = 60.0
"""A Describe call may take this long, because the worker first loads the weights that it lacks."""


@dataclass(frozen=True)
class WorkerIntervals:
    """Holds the intervals of the client's background work, in seconds.

    Attributes:
        describe_s: between two Describe calls while the worker lacks weights.
        renew_s: between two calls of `renew_channel` while a worker serves. Without a worker they come every second.
        replace_after_s: time without a worker after which the channel is replaced. Its resolver backs off from a name
            that does not exist, up to two minutes; the resolver of a new channel asks at once.
    """

    describe_s: float = 5.0
    renew_s: float = 60.0
    replace_after_s: float = 10.0


class WorkerClient:
    """Forwards projections and explanations to the workers behind `channel`, which it does not own.

    The channel asks each worker for its health (gRFC A17) and calls only those that serve. While one of several stops,
    the others go on, so this client only needs to know if there is any worker. It never asks a worker to project a
    network that the worker does not hold.

    Args:
        channel: a channel with the options `worker_channel_options`.
        metrics: shows the pairing.
        max_call_s: the longest time of one call, in seconds. It bounds callers without a deadline.
        on_change: called after each change of the pairing, with True if the worker can project all served networks.
        renew_channel: returns a channel to use from now on, or None to keep the current one. Its argument is True if
            the channel must be replaced.
        intervals: the intervals of the background work.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metrics: Metrics,
        max_call_s: float,
        on_change: Callable[[bool], None],
        renew_channel: Callable[[bool], grpc.aio.Channel | None] = lambda force: None,
        intervals: WorkerIntervals | None = None,
    ) -> None:
        self._pairing = Pairing(metrics, on_change)
        self._max_call_s = max_call_s
        self._renew_channel = renew_channel
        self._intervals = intervals or WorkerIntervals()
        self._describing = asyncio.Lock()
        self._described_at = -math.inf
        self._use(channel)

    @property
    def ready(self) -> bool:
        """True if a worker can project all served networks."""
        return self._pairing.ready

    def holds(self, fingerprint: str) -> bool:
        """Returns True if a worker can project that network."""
        return self._pairing.holds(fingerprint)

    def check(self, fingerprint: str) -> None:
        """Raises WorkerUnavailable or WorkerMismatch if no worker can project that network. It asks no worker."""
        self._pairing.check(fingerprint)

    async def announce(self, fingerprints: Collection[str]) -> None:
        """Announces the networks that the server serves from now on. Returns once the worker has loaded what it can."""
        self._pairing.set_served(fingerprints)
        if self._pairing.worker_up:
            with suppress(grpc.aio.AioRpcError, EngineFailed):  # `watch` notices a worker that went away
                await self._describe()
        self._pairing.update()

    async def require(self, fingerprint: str) -> None:
        """Raises WorkerUnavailable or WorkerMismatch if no worker can project that network now."""
        lacking = self._pairing.worker_up and not self._pairing.holds(fingerprint)
        if lacking and time.monotonic() - self._described_at >= _RETRY_S:
            await self.announce(self._pairing.served)  # the version may have come to its volume later
        self._pairing.check(fingerprint)

    async def watch(self) -> None:
        """Follows the workers' health, and pairs with them each time one comes up. Runs until cancelled."""
        while True:
            async with asyncio.TaskGroup() as tasks:
                following = [
                    tasks.create_task(self._follow(self._channel)),
                    tasks.create_task(self._describe_while_mismatched()),
                ]
                while (channel := self._renew_channel(self._is_stale())) is None:
                    await self._until_next_renewal()
                self._use(channel)  # at once, because the replaced channel takes no more calls
                for task in following:
                    task.cancel()

    async def project(
        self, request: worker_pb2.ProjectRequest, deadline: Deadline
    ) -> AsyncGenerator[pb.ProjectResponse, None]:
        """Yields the worker's projections. Closing the iterator early cancels the call to the worker.

        Raises:
            WorkerUnavailable, WorkerMismatch: there is no worker, it went away, or it holds other weights.
            DeadlineExceeded: the caller's deadline or `max_call_s` passed.
            ServiceError: the worker answered an error, which is passed on with the same status.
        """
        await self.require(request.fingerprint)
        for attempts_left in reversed(range(_MAX_ATTEMPTS)):
            begun = False
            async with aclosing(self._project_once(request, deadline)) as projections:
                try:
                    async for projection in projections:
                        begun = True
                        yield projection
                except WorkerMismatch:
                    if begun or not attempts_left:
                        self._pairing.drop_held(request.fingerprint)
                        raise
                else:
                    return

    async def _project_once(
        self, request: worker_pb2.ProjectRequest, deadline: Deadline
    ) -> AsyncGenerator[pb.ProjectResponse, None]:
        with outgoing_call(WORKER_PROJECT) as trace:
            call = self._worker.Project(request, timeout=self._timeout_s(deadline), metadata=_metadata(trace))
            try:
                async for message in call:
                    yield parsed(message).projection
            except grpc.aio.AioRpcError as error:
                raise translate(error) from error
            finally:
                call.cancel()

    async def explain(self, request: worker_pb2.ExplainRequest, deadline: Deadline) -> pb.ExplainResponse:
        """Returns the worker's explanation. Cancelling this cancels the call to the worker.

        Raises:
            WorkerUnavailable, WorkerMismatch: there is no worker, it went away, or it holds other weights.
            Unimplemented: the workers are of a release before 0.2.0.
            DeadlineExceeded: the caller's deadline or `max_call_s` passed.
            ServiceError: the worker answered an error, which is passed on with the same status.
        """
        await self.require(request.fingerprint)
        for attempts_left in reversed(range(_MAX_ATTEMPTS)):
            try:
                return await self._explain_once(request, deadline)
            except Unimplemented:  # in a rolling upgrade, the next worker may be of this release
                if not attempts_left:
                    raise
            except WorkerMismatch:
                if not attempts_left:
                    self._pairing.drop_held(request.fingerprint)
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _explain_once(self, request: worker_pb2.ExplainRequest, deadline: Deadline) -> pb.ExplainResponse:
        with outgoing_call(WORKER_EXPLAIN) as trace:
            call = self._worker.Explain(request, timeout=self._timeout_s(deadline), metadata=_metadata(trace))
            try:
                return parsed(await call).explanation
            except grpc.aio.AioRpcError as error:
                raise translate(error) from error

    def _timeout_s(self, deadline: Deadline) -> float:
        """Returns the time that a call to the worker may take, in seconds."""
        remaining_s = deadline.remaining_s()
        return self._max_call_s if remaining_s is None else min(self._max_call_s, remaining_s)

    def _use(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._worker = worker_pb2_grpc.WorkerServiceStub(channel)
        self._down_since = time.monotonic()  # when the last worker went, or this channel was opened

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        """Pairs with a worker each time `channel` becomes ready, and notes when it has none. Runs until cancelled."""
        while True:
            state = channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                try:
                    await self._describe()
                except (grpc.aio.AioRpcError, EngineFailed) as error:
                    logger.info("the worker does not answer Describe", extra={"error": short_text(error)})
                    self._set_worker_up(False)
                    await asyncio.sleep(_RETRY_S)
                    continue
                self._set_worker_up(True)
            elif state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                self._set_worker_up(False)
            # In any other state the channel reconnects, because a worker limits the age of its connections. Calls wait
            # for that, and the pairing stays.
            # gRPC's own wait for a state cannot be cancelled: it ends with the channel, in a loop that may be closed.
            while channel.get_state(try_to_connect=True) is state:  # noqa: ASYNC110
                await asyncio.sleep(_STATE_POLL_S)

    def _set_worker_up(self, up: bool) -> None:
        if up or self._pairing.worker_up:
            self._down_since = time.monotonic()
        self._pairing.set_worker_up(up)

    def _is_stale(self) -> bool:
        """Returns True if the channel has found no worker for `intervals.replace_after_s` seconds."""
        failing = self._channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return failing and time.monotonic() - self._down_since >= self._intervals.replace_after_s

    async def _until_next_renewal(self) -> None:
        if not self._pairing.worker_up:
            await asyncio.sleep(min(self._intervals.renew_s, _RETRY_S))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._intervals.renew_s):
                await self._pairing.worker_down.wait()

    async def _describe_while_mismatched(self) -> None:
        """Asks again for weights that the worker lacks. Its volume may be behind the server's. Runs until cancelled."""
        while True:
            await self._pairing.mismatched.wait()
            await asyncio.sleep(self._intervals.describe_s)
            if self._pairing.mismatched.is_set():
                await self.announce(self._pairing.served)

    async def _describe(self) -> None:
        """Asks the worker to load the networks that the server serves, and notes which ones it holds."""
        async with self._describing:
            asked: frozenset[str] | None = None
            while asked != self._pairing.served:  # it may have changed during the call
                self._described_at, asked = time.monotonic(), self._pairing.served
                request = worker_pb2.DescribeRequest(fingerprints=sorted(asked), release=RELEASE)
                response = parsed(await self._worker.Describe(request, timeout=_DESCRIBE_TIMEOUT_S))
                self._pairing.set_worker([model.fingerprint for model in response.models], response.release)


def _metadata(trace: Metadata) -> Metadata:
    """Returns the metadata of a call to the worker: the id of the request that causes it, and its trace."""
    return ((REQUEST_ID_KEY, current_request_id()), *trace)
