"""What surrounds every call: an id, a clock, one line in the log, and errors turned into statuses.

Made by `intercepting_server`; the services raise `ServiceError` and know nothing of statuses.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Any, Never

import grpc
from google.protobuf.message import DecodeError
from zfserve_protos.metadata import PREVIOUS_ATTEMPTS_KEY, REQUEST_ID_KEY
from zfserve_protos.methods import is_probe

from zfserve_runtime.access.access import current_caller
from zfserve_runtime.errors import InvalidInput, Overloaded, ServiceError
from zfserve_runtime.grpc.deferred_read import CallCheck
from zfserve_runtime.grpc.gate import Gate
from zfserve_runtime.grpc.method_handlers import Context, Metadata, metadata_of
from zfserve_runtime.grpc.request_id import set_request_id
from zfserve_runtime.grpc.status import to_status
from zfserve_runtime.telemetry.log_limiter import LogLimiter
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.tracing import UNTRACED, Tracers, start_call

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SERVER_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

_log = logging.getLogger(__name__)


class Method:
    """What all calls of one method have in common. Made once: no call looks its metrics up by their labels.

    Args:
        name: as gRPC has it, "/package.Service/Method".
        tracers: start the spans of its calls.

    Attributes:
        in_flight: calls being served; the metric is read from it.
    """

    def __init__(self, name: str, gate: Gate, metrics: Metrics, tracers: Tracers, log_limiter: LogLimiter) -> None:
        self.name = name
        self.is_probe = is_probe(name)
        self.gate = gate
        self.tracers = tracers
        self.log_limiter = log_limiter
        self.in_flight = 0
        metrics.in_flight.labels(name).set_function(lambda: self.in_flight)
        self._seconds = metrics.request_seconds.labels(name)
        self._ended = cache(lambda status: metrics.requests.labels(name, status))
        self._refused = cache(lambda reason: metrics.refusals.labels(name, reason))

    def measure(self, status: grpc.StatusCode, duration_s: float, error: BaseException | None) -> None:
        """Count a call that ended."""
        self._ended(status.name).inc()
        self._seconds.observe(duration_s)
        if isinstance(error, ServiceError):
            self._refused(error.reason).inc()


class Call:
    """One call, as a context around its handler. Errors that the client is to be told of end in it: `answer` follows.

    A class and not a generator, and what can wait until the answer is on its way does: all of this stands between the
    client and its answer.
    """

    def __init__(self, method: Method, context: Context) -> None:
        self._method = method
        self._context = context
        self._trace = UNTRACED
        self._metadata = metadata_of(context)
        self._request_id = _request_id_in(self._metadata)
        self._started_s = time.perf_counter()
        self._answer: ServiceError | None = None

    def __enter__(self) -> Call:
        set_request_id(self._request_id)  # each call is a task of its own, so nothing needs to be put back
        self._trace = start_call(self._method.tracers, self._method.name, self._request_id, self._metadata)
        self._method.in_flight += 1
        self._method.gate.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        status = self._judge(error)
        duration_s = time.perf_counter() - self._started_s
        self._method.in_flight -= 1
        self._method.gate.leave()
        if error is None:
            peer = self._context.peer()  # a call that has ended must not be asked: gRPC would crash the process
            asyncio.get_running_loop().call_soon(self._record, status, duration_s, None, peer)
        else:  # measured and logged by the time the client knows
            self._record(status, duration_s, self._answer if isinstance(error, DecodeError) else error)
        return self._answer is not None

    def check(self, checks: Sequence[CallCheck]) -> None:
        """Raises ShuttingDown where the gate is closed, or the error of the first check that fails."""
        self._method.gate.check()
        for check in checks:
            check(self._context, self._metadata)

    def accept(self, request: Any) -> None:
        """Before the service has it. Raises a `request` that is the error of reading it."""
        if isinstance(request, DecodeError):
            raise request
        self._context.set_trailing_metadata([(REQUEST_ID_KEY, self._request_id)])

    async def answer(self) -> Never:
        """End the call with the error that ended its handler, with no message before it, so that gRPC's retries may
        try again (gRFC A6).

        The call and gRPC's exception refer to one another, by way of the traceback, as the call and its error do. What
        is in such a circle, the request among it, would stay until the garbage collector comes.
        """
        error, self._answer = self._answer, None
        assert error is not None, "the handler's own answer was returned otherwise"
        status = to_status(error)
        metadata = (*status.metadata(self._request_id), (REQUEST_ID_KEY, self._request_id))
        try:
            await self._context.abort(status.code, status.message, metadata)
        except grpc.aio.AbortError as aborted:
            asyncio.get_running_loop().call_soon(_drop_traceback, aborted)  # when gRPC has caught it
            raise

    def _judge(self, error: BaseException | None) -> grpc.StatusCode:
        """The status of the call, and what to answer where the handler did not."""
        match error:
            case None:
                # The stubs leave out that a code not set is None.
                answered: grpc.StatusCode | None = self._context.code()
                return answered or grpc.StatusCode.OK
            case ServiceError():
                self._answer = error
                return error.status
            case grpc.aio.AbortError():  # the service, the standard health service for one, answered for itself
                return self._context.code()
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

    def _record(
        self, status: grpc.StatusCode, duration_s: float, error: BaseException | None, peer: str | None = None
    ) -> None:
        self._trace.end(status.name, duration_s)
        self._method.measure(status, duration_s, error)
        if isinstance(error, Overloaded) and not self._method.log_limiter.has_room():
            return
        is_fault = status in _SERVER_FAULTS
        level = logging.ERROR if is_fault else logging.DEBUG if self._method.is_probe else logging.INFO
        if not _log.isEnabledFor(level):
            return
        fields = {
            "request_id": self._request_id,
            "method": self._method.name,
            "status": status.name,
            "duration_ms": round(duration_s * 1e3, 3),
            "peer": self._context.peer() if peer is None else peer,
            **_earlier_attempts(self._metadata),
        }
        if caller := current_caller().name:
            fields["caller"] = caller
        if isinstance(error, ServiceError):
            fields |= {"reason": error.reason, "error": error.message}
        _log.log(level, "call", exc_info=error if is_fault else None, extra=fields)


def _drop_traceback(error: BaseException) -> None:
    error.__traceback__ = None


def _request_id_in(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return f"{random.getrandbits(64):016x}"  # to tell calls apart, not to guard anything


def _earlier_attempts(metadata: Metadata) -> dict[str, str]:
    """For the log: how often gRPC's retries (gRFC A6) had made this call before; nothing where this is the first."""
    for key, value in metadata:
        if key == PREVIOUS_ATTEMPTS_KEY and isinstance(value, str):
            return {"earlier_attempts": value}
    return {}


def _is_cancelled_by_grpc() -> bool:
    """Whether this task was told to stop; a CancelledError without that leaked out of something the service awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
