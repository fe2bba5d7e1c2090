"""Intercepts every call: gives it an id, measures it, logs one line, and turns errors into statuses.

`server` wraps each handler with a `Call`. Services raise `ServiceError` and know nothing of statuses.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache, partial
from types import TracebackType
from typing import Any, Never

import grpc
from google.protobuf.message import DecodeError
from zfserve_protos.metadata import PREVIOUS_ATTEMPTS_KEY, REQUEST_ID_KEY
from zfserve_protos.methods import is_probe

from zfserve_runtime.access.authorizer import current_caller
from zfserve_runtime.errors import InvalidInput, Overloaded, ServiceError
from zfserve_runtime.grpc.call_tracker import CallTracker
from zfserve_runtime.grpc.deferred_read import CallCheck
from zfserve_runtime.grpc.method_handlers import Context, Metadata, metadata_of
from zfserve_runtime.grpc.request_id import set_request_id
from zfserve_runtime.grpc.status import to_status
from zfserve_runtime.telemetry.log_limiter import LogLimiter
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.tracing import UNTRACED, Tracers, start_call

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SERVER_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

_log = logging.getLogger(__name__)


_counted_as: ContextVar[str] = ContextVar("counted_as", default="")


def count_as(method: str) -> None:
    """Counts and times the current call as a call of `method`, its full name.

    A handler uses it where one method does the work of several that take very different times. The log and the number
    of calls in flight keep the call's own method.
    """
    _counted_as.set(method)  # each call is a task of its own, so nothing must be reset


class _Measures:
    """Holds the metrics of one method, so that no call looks them up by their labels."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self.seconds = metrics.request_seconds.labels(name)
        self.ended = cache(lambda status: metrics.requests.labels(name, status))
        self.refused = cache(lambda reason: metrics.refusals.labels(name, reason))


class Method:
    """Holds what all calls of one method share. It looks up the metrics by their labels once, and not for each call.

    Args:
        name: the full name, "/package.Service/Method".
        calls: counts the calls in flight of the server.
        tracers: start the spans of the calls.
        log_limiter: limits the log lines about refused calls.

    Attributes:
        in_flight: the number of calls of this method that are being served. The metric reads it.
    """

    def __init__(
        self, name: str, calls: CallTracker, metrics: Metrics, tracers: Tracers, log_limiter: LogLimiter
    ) -> None:
        self.name = name
        self.is_probe = is_probe(name)
        self.calls = calls
        self.tracers = tracers
        self.log_limiter = log_limiter
        self.in_flight = 0
        metrics.in_flight.labels(name).set_function(lambda: self.in_flight)
        self._measures = _Measures(metrics, name)
        self._other_measures = cache(partial(_Measures, metrics))

    def measure(self, status: grpc.StatusCode, duration_s: float, error: BaseException | None) -> None:
        """Counts a call that has ended."""
        other = _counted_as.get()
        measures = self._other_measures(other) if other else self._measures
        measures.ended(status.name).inc()
        measures.seconds.observe(duration_s)
        if isinstance(error, ServiceError):
            measures.refused(error.reason).inc()


class Call:
    """Surrounds the handler of one call. It catches an error that the client must get, and `answer` then sends it.

    A client waits for all of this code. So it is a class, which is faster than a generator. It records a successful
    call only after the answer has been sent.
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
        set_request_id(self._request_id)  # each call is a task of its own, so nothing must be reset
        self._trace = start_call(self._method.tracers, self._method.name, self._request_id, self._metadata)
        self._method.in_flight += 1
        self._method.calls.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        status = self._status_of(error)
        duration_s = time.perf_counter() - self._started_s
        self._method.in_flight -= 1
        self._method.calls.end()
        if error is None:
            peer = self._context.peer()  # now, because gRPC crashes the process if the peer of an ended call is read
            asyncio.get_running_loop().call_soon(self._record, status, duration_s, None, peer)
        else:  # at once, so that the call is measured and logged before the client learns of the error
            self._record(status, duration_s, self._answer if isinstance(error, DecodeError) else error)
        return self._answer is not None

    def check(self, checks: Sequence[CallCheck]) -> None:
        """Raises ShuttingDown if the server refuses calls, or the error of the first check that fails."""
        self._method.calls.check_accepting()
        for check in checks:
            check(self._context, self._metadata)

    def accept(self, request: Any) -> None:
        """Accepts the request before the service gets it. Raises `request` itself if it is a DecodeError."""
        if isinstance(request, DecodeError):
            raise request
        self._context.set_trailing_metadata([(REQUEST_ID_KEY, self._request_id)])

    async def answer(self) -> Never:
        """Ends the call with the error that its handler raised.

        No message precedes the error, so that gRPC's own retries may try again (gRFC A6).

        The call and gRPC's exception refer to one another through the traceback, and so do the call and its error. Such
        a cycle, and the request in it, would stay in memory until the garbage collector runs. So this method breaks
        both cycles.
        """
        error, self._answer = self._answer, None
        assert error is not None, "the handler has answered by itself"
        status = to_status(error)
        metadata = (*status.metadata(self._request_id), (REQUEST_ID_KEY, self._request_id))
        try:
            await self._context.abort(status.code, status.message, metadata)
        except grpc.aio.AbortError as aborted:
            asyncio.get_running_loop().call_soon(_drop_traceback, aborted)  # after gRPC has caught it
            raise

    def _status_of(self, error: BaseException | None) -> grpc.StatusCode:
        """Returns the status of the call. Sets `_answer` if the handler has not answered by itself."""
        match error:
            case None:
                # The stubs leave out that this is None if no code was set.
                answered: grpc.StatusCode | None = self._context.code()
                return answered or grpc.StatusCode.OK
            case ServiceError():
                self._answer = error
                return error.status
            case grpc.aio.AbortError():  # the service ended the call itself, as the standard health service does
                return self._context.code()
            case DecodeError():
                self._answer = InvalidInput("the request is not the message that this method takes")
                return self._answer.status
            case asyncio.CancelledError() if _is_cancelled_by_grpc():
                return grpc.StatusCode.DEADLINE_EXCEEDED if self._deadline_passed() else grpc.StatusCode.CANCELLED
            case Exception() | asyncio.CancelledError():
                # The error's own text may hold paths or data of other callers.
                text = f"internal error; quote request id {self._request_id} to the operator"
                self._answer = ServiceError(text)
        return grpc.StatusCode.INTERNAL

    def _deadline_passed(self) -> bool:
        """Returns True if the client cancelled this call at its deadline.

        The client may cancel before our clock reaches the deadline. gRPC rounds timeouts up by as much as 1 %, and the
        client's clock started earlier, because the request took time to arrive. 50 ms are allowed for that.
        """
        # The stubs leave out that this is None for a call without a deadline.
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
        if isinstance(error, Overloaded) and not self._method.log_limiter.allow_line():
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
        if key == REQUEST_ID_KEY and isinstance(value, str) and _VALID_ID.fullmatch(value):
            return value
    return f"{random.getrandbits(64):016x}"  # it distinguishes calls and protects nothing


def _earlier_attempts(metadata: Metadata) -> dict[str, str]:
    """Returns the log field that says how often gRPC's retries (gRFC A6) made this call before, if they did."""
    for key, value in metadata:
        if key == PREVIOUS_ATTEMPTS_KEY and isinstance(value, str):
            return {"earlier_attempts": value}
    return {}


def _is_cancelled_by_grpc() -> bool:
    """Returns True if gRPC cancelled this task. Otherwise a CancelledError leaked out of something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
