"""Makes the spans of one process. The interceptor and serving code call it. It uses OpenTelemetry's API only.

Each request has one trace. A batch serves many requests, so it has a trace of its own, and links join the two:

    zfserve.v1.VisionService/Classify         batch ──links──▶ the calls of its rows
    ├── decode                                └── engine
    ├── queue
    └── inference ──link──▶ batch

    zfserve.v1.VisionService/Project
    ├── decode
    └── zfserve.worker.v1.WorkerService/Project     the call as the server makes it
        └── zfserve.worker.v1.WorkerService/Project     the call as the worker serves it
            ├── forward pass
            ├── projection                          one for each feature map
            └── render

The interceptor starts the span of a call and puts it into OpenTelemetry's context. Serving code finds it there, so no
tracer is passed around. Tracers that record come from `otlp`; all others are the API's own, which do nothing.

Names follow OpenTelemetry's semantic conventions for RPC (rpc.*, error.*). Our own names begin with `zfserve.`.
docs/tracing.md is for operators.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from opentelemetry.context import Context, attach, create_key, get_value, set_value
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NoOpTracer,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from zfserve_runtime.errors import ServiceError

Attributes = dict[str, str | int | float]
Metadata = tuple[tuple[str, str], ...]

_PROPAGATOR = TraceContextTextMapPropagator()
_CALL_TRACE = create_key("zfserve-call-trace")

_SERVER_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""A server's span with one of these statuses is an error (semantic conventions for gRPC). All other errors are the
caller's."""


class Tracers(NamedTuple):
    """Holds the two tracers of a process. By default they are OpenTelemetry's no-ops.

    Attributes:
        calls: starts the spans of calls and of their steps.
        batches: starts the spans of batches, each the root of a trace of its own.
    """

    calls: Tracer = NoOpTracer()
    batches: Tracer = NoOpTracer()


NO_TRACERS = Tracers()


class CallTrace:
    """Holds the span of one call, and starts the spans of its steps.

    Attributes:
        attributes: the attributes that every step's span gets: the request's id, and the model once it is known.
    """

    def __init__(self, tracers: Tracers, span: Span, attributes: Attributes) -> None:
        self.tracers = tracers
        self.span = span
        self.attributes = attributes
        self._began_ns = time.time_ns()
        self._parent = set_span_in_context(span, Context())

    def note(self, attributes: Attributes) -> None:
        """Adds `attributes` to the span of the call, and to the spans of steps that start from now on."""
        if self.span.is_recording():
            self.attributes.update(attributes)
            self.span.set_attributes(attributes)

    def end(self, status: str, duration_s: float) -> None:
        """Ends the call's span with the gRPC status `status`, `duration_s` after the call began."""
        if not self.span.is_recording():
            return
        self.span.set_attribute("rpc.response.status_code", status)
        if status in _SERVER_FAULTS:
            _mark(self.span, status)
        self.span.end(self._began_ns + int(duration_s * 1e9))

    @contextmanager
    def step(
        self, name: str, attributes: Mapping[str, str | int | float], kind: SpanKind = SpanKind.INTERNAL
    ) -> Iterator[Span]:
        """Runs the block in a span of its own. If the block raises, the span is marked as an error."""
        span = self.tracers.calls.start_span(name, self._parent, kind, {**self.attributes, **attributes})
        try:
            yield span
        except GeneratorExit:  # the reader of a stream stopped early, which is no error
            raise
        except BaseException as error:
            if isinstance(error, ServiceError) and kind is SpanKind.CLIENT:
                span.set_attribute("rpc.response.status_code", error.status.name)
            _mark(span, error.reason if isinstance(error, ServiceError) else type(error).__name__)
            raise
        finally:
            span.end()

    def add_step(
        self,
        name: str,
        began_ns: int,
        ended_ns: int,
        attributes: Attributes | None = None,
        links: Sequence[Link] = (),
        failed: bool = False,
    ) -> None:
        """Adds the span of a step that has already ended. Times are in nanoseconds since 1970."""
        span = self.tracers.calls.start_span(
            name, self._parent, attributes=self.attributes | (attributes or {}), links=links, start_time=began_ns
        )
        if failed:
            _mark(span, "EngineFailed")
        span.end(ended_ns)


UNTRACED = CallTrace(NO_TRACERS, INVALID_SPAN, {})
"""Stands for a call that is not traced, and for work outside any call. Its spans do nothing."""


class TracedRow(NamedTuple):
    """Holds one image of a batch. Its call is traced.

    Attributes:
        submitted_s: the time when the image entered the queue, in seconds of `time.monotonic()`.
    """

    call: CallTrace
    submitted_s: float


def start_call(
    tracers: Tracers, method: str, request_id: str, metadata: Iterable[tuple[str, str | bytes]]
) -> CallTrace:
    """Starts the span of a call, and makes it the current span of this task.

    The span continues the caller's trace if `metadata` has a valid W3C traceparent. Returns `UNTRACED` if the sampler
    leaves this call out.

    Args:
        method: the method's full name, such as "/zfserve.v1.VisionService/Classify".
    """
    carrier = {key: value for key, value in metadata if key in ("traceparent", "tracestate")}
    name = method.removeprefix("/")
    attributes: Attributes = {"zfserve.request.id": request_id}
    span = tracers.calls.start_span(
        name,
        _PROPAGATOR.extract(carrier, Context()),
        SpanKind.SERVER,
        {"rpc.system.name": "grpc", "rpc.method": name, **attributes},
    )
    if not span.is_recording():
        return UNTRACED
    call = CallTrace(tracers, span, attributes)
    attach(set_value(_CALL_TRACE, call, set_span_in_context(span)))  # each call has its own task: nothing to detach
    return call


def current_trace() -> CallTrace:
    """Returns the trace of the call that this task serves, or `UNTRACED`."""
    call = get_value(_CALL_TRACE)
    return call if isinstance(call, CallTrace) else UNTRACED


def leave_trace() -> None:
    """Takes this task out of the trace of its call. Work that the task does from now on has no spans."""
    attach(set_value(_CALL_TRACE, UNTRACED))  # the task ends with its context: nothing to detach


def current_trace_id() -> str:
    """Returns the id of the current trace in 32 hex digits, or "" if there is none."""
    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else ""


def span(name: str, attributes: Mapping[str, str | int | float] | None = None) -> AbstractContextManager[Span]:
    """Runs the block as a step of the current call, in a span named `name`."""
    return current_trace().step(name, attributes or {})


@contextmanager
def outgoing_call(method: str) -> Iterator[Metadata]:
    """Runs the block in the span of a call to another process.

    Yields the metadata to send with that call, so that the other process continues this trace.

    Args:
        method: the method's full name, such as "/zfserve.worker.v1.WorkerService/Project".
    """
    name = method.removeprefix("/")
    attributes = {"rpc.system.name": "grpc", "rpc.method": name}
    with current_trace().step(name, attributes, SpanKind.CLIENT) as span:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
        yield tuple(carrier.items())
        span.set_attribute("rpc.response.status_code", "OK")


def note_model(name: str, version: str) -> None:
    """Notes which model serves the current call, on the call's span and on the spans of the steps that follow."""
    current_trace().note({"zfserve.model.name": name, "zfserve.model.version": version})


def record_batch(rows: Sequence[TracedRow], batch_size: int, began_s: float, inference_s: float, failed: bool) -> None:
    """Records a batch that ends now: its own trace, and the queue and inference spans in the trace of each row.

    Args:
        rows: the traced images of the batch, at least one.
        batch_size: the number of all images in the batch, traced or not.
        began_s: the time when the batch was formed, in seconds of `time.monotonic()`.
        inference_s: the seconds from then until the engine had answered.
        failed: True if the engine failed.
    """
    ended_ns = time.time_ns()
    monotonic_ns = time.monotonic_ns()

    def to_wall_ns(at_s: float) -> int:
        return ended_ns - monotonic_ns + int(at_s * 1e9)

    tracer, attributes = rows[0].call.tracers.batches, rows[0].call.attributes
    began_ns, answered_ns = to_wall_ns(began_s), to_wall_ns(began_s + inference_s)
    size: Attributes = {"zfserve.batch.size": batch_size}
    model = {key: value for key, value in attributes.items() if key.startswith("zfserve.model.")}
    batch = tracer.start_span(
        "batch",
        Context(),
        attributes={**model, **size},
        links=[Link(row.call.span.get_span_context(), row.call.attributes) for row in rows],
        start_time=began_ns,
    )
    inside_batch = set_span_in_context(batch, Context())
    engine = tracer.start_span("engine", inside_batch, attributes={**model, **size}, start_time=began_ns)
    link = Link(batch.get_span_context(), size)
    for row in rows:
        row.call.add_step("queue", to_wall_ns(row.submitted_s), began_ns)
        row.call.add_step("inference", began_ns, answered_ns, size, (link,), failed)
    for span, end_ns in ((engine, answered_ns), (batch, ended_ns)):
        if failed:
            _mark(span, "EngineFailed")
        span.end(end_ns)


def _mark(span: Span, kind: str) -> None:
    """Marks the span as an error of `kind`. The error's text is left out, because it may hold paths or private data."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
