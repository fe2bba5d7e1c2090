"""Traces by OpenTelemetry, sent over OTLP. The only module that touches it; reached through `tracing`.

Names: OpenTelemetry's semantic conventions for RPC (rpc.*, error.*); what they have no word for begins with zfserve.
"""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from zfserve_runtime.errors import ServiceError
from zfserve_runtime.telemetry.tracing import Metadata, TracedRow, enter_trace

Attributes = dict[str, str | int | float]

FLUSH_S = 2.0
"""For the last spans to be sent; a collector that is away keeps nobody longer."""

_SERVER_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Statuses that make a server's span an error (semantic conventions for gRPC); the others are the caller's doing."""


class Tracing:
    """The tracers of one process. Ended spans wait in a bounded queue for a thread that sends them; over its bound, or
    while there is nobody to send them to, they are dropped.

    Args:
        exporter: where spans go; it belongs to this object.
        ratio: see `tracing.open_tracing`.
    """

    def __init__(self, service: str, exporter: SpanExporter, ratio: float | None) -> None:
        self._exporter = exporter
        processor = BatchSpanProcessor(exporter)
        resource = _resource(service)
        sampler = None if ratio is None else ParentBased(TraceIdRatioBased(ratio))
        self._calls = TracerProvider(sampler, resource, shutdown_on_exit=False)
        # A batch is the root of its own trace, for which a ratio would draw the lot anew: it is traced if a row is.
        self._batches = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        for provider in (self._calls, self._batches):
            provider.add_span_processor(processor)
        self.call_tracer = self._calls.get_tracer("zfserve")
        self._batch_tracer = self._batches.get_tracer("zfserve")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, service: str, endpoint: str, ratio: float | None) -> Tracing:
        return cls(service, OTLPSpanExporter(endpoint), ratio)

    def begin_call(
        self, method: str, request_id: str, metadata: Iterable[tuple[str, str | bytes]] | None
    ) -> CallTrace | None:
        """The trace of a call that begins in this task: its caller's, where `metadata` has a W3C traceparent that is
        sound. None where it is not to be traced."""
        carrier = {key: value for key, value in metadata or () if key in ("traceparent", "tracestate")}
        name = method.removeprefix("/")
        attributes: Attributes = {"zfserve.request.id": request_id}
        span = self.call_tracer.start_span(
            name,
            self._propagator.extract(carrier, Context()),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": name, **attributes},
        )
        if not span.is_recording():
            return None
        call = CallTrace(self, span, attributes)
        enter_trace(call)
        return call

    def metadata_for(self, span: Span) -> Metadata:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span, Context()))
        return tuple(carrier.items())

    def draw_batch(
        self, rows: Sequence[TracedRow], batch_size: int, began_s: float, inference_s: float, failed: bool
    ) -> None:
        """See `tracing.record_batch`."""
        ended_ns = time.time_ns()
        monotonic_ns = time.monotonic_ns()

        def moment(at_s: float) -> int:
            return ended_ns - monotonic_ns + int(at_s * 1e9)

        began_ns, answered_ns = moment(began_s), moment(began_s + inference_s)
        size: Attributes = {"zfserve.batch.size": batch_size}
        model = {key: value for key, value in rows[0].call.attributes.items() if key.startswith("zfserve.model.")}
        batch = self._batch_tracer.start_span(
            "batch",
            Context(),
            attributes={**model, **size},
            links=[Link(row.call.span.get_span_context(), row.call.attributes) for row in rows],
            start_time=began_ns,
        )
        inside = set_span_in_context(batch, Context())
        engine = self._batch_tracer.start_span("engine", inside, attributes={**model, **size}, start_time=began_ns)
        link = Link(batch.get_span_context(), size)
        for row in rows:
            row.call.draw("queue", moment(row.submitted_s), began_ns)
            row.call.draw("inference", began_ns, answered_ns, size, (link,), failed)
        for span, end_ns in ((engine, answered_ns), (batch, ended_ns)):
            if failed:
                _mark(span, "EngineFailed")
            span.end(end_ns)

    def close(self) -> None:
        """Send what waits, for `FLUSH_S` at most, and stop."""
        flushing = threading.Thread(target=self._calls.shutdown, name="traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)
        self._exporter.shutdown()  # ends a sending that still tries
        flushing.join(FLUSH_S)

    def __enter__(self) -> Tracing:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class CallTrace:
    """The span of one call being served, and what the spans of its steps have in common.

    Attributes:
        attributes: of every step: the request's id, and the model once it is known.
    """

    def __init__(self, tracing: Tracing, span: Span, attributes: Attributes) -> None:
        self.tracing = tracing
        self.span = span
        self.attributes = attributes
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        self._began_ns = time.time_ns()
        self._inside = set_span_in_context(span, Context())

    def note(self, attributes: Attributes) -> None:
        self.attributes.update(attributes)
        self.span.set_attributes(attributes)

    def end(self, status: str, duration_s: float) -> None:
        """The call ended with the gRPC status `status`, `duration_s` after it began."""
        self.span.set_attribute("rpc.response.status_code", status)
        if status in _SERVER_FAULTS:
            _mark(self.span, status)
        self.span.end(self._began_ns + int(duration_s * 1e9))

    @contextmanager
    def step(self, name: str, attributes: Mapping[str, str | int | float]) -> Iterator[None]:
        with self._timed(name, SpanKind.INTERNAL, attributes):
            yield

    @contextmanager
    def outgoing(self, method: str) -> Iterator[Metadata]:
        with self._timed(method, SpanKind.CLIENT, {"rpc.system.name": "grpc", "rpc.method": method}) as span:
            yield self.tracing.metadata_for(span)
            span.set_attribute("rpc.response.status_code", "OK")

    def draw(
        self,
        name: str,
        began_ns: int,
        ended_ns: int,
        attributes: Attributes | None = None,
        links: Sequence[Link] = (),
        failed: bool = False,
    ) -> None:
        """A step that is over."""
        span = self.tracing.call_tracer.start_span(
            name,
            self._inside,
            attributes=self.attributes | (attributes or {}),
            links=links,
            start_time=began_ns,
        )
        if failed:
            _mark(span, "EngineFailed")
        span.end(ended_ns)

    @contextmanager
    def _timed(self, name: str, kind: SpanKind, attributes: Mapping[str, str | int | float]) -> Iterator[Span]:
        span = self.tracing.call_tracer.start_span(name, self._inside, kind, {**self.attributes, **attributes})
        try:
            yield span
        except GeneratorExit:  # whoever reads a stream has enough of it
            raise
        except BaseException as error:
            if isinstance(error, ServiceError) and kind is SpanKind.CLIENT:
                span.set_attribute("rpc.response.status_code", error.status.name)
            _mark(span, error.reason if isinstance(error, ServiceError) else type(error).__name__)
            raise
        finally:
            span.end()


def _mark(span: Span, kind: str) -> None:
    """An error, by its kind only: its text may hold paths or data of others."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def _resource(service: str) -> Resource:
    own = {SERVICE_VERSION: importlib.metadata.version("zfserve")}
    if SERVICE_NAME not in OTELResourceDetector().detect().attributes:
        own[SERVICE_NAME] = service
    return Resource.create(own)
