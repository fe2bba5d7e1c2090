"""Makes a span for each call, and the metadata with which the service continues the application's trace.

Only an application that traces has spans. It has then imported OpenTelemetry. This package does not need OpenTelemetry,
and does not import it by itself. The names follow OpenTelemetry's semantic conventions for RPC. Both clients use it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from zfserve.errors import ZfserveError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

Metadata = tuple[tuple[str, str], ...]


class CallSpan:
    """Begins the span of one call. Its parent is the current span of the application.

    Args:
        method: the method's full name, such as "/zfserve.v1.VisionService/Classify".
        provider: makes the span. None means the application's global provider. Without a global provider, or without
            OpenTelemetry, there is no span.

    Attributes:
        metadata: the metadata to send with the call: a W3C traceparent, or nothing.
    """

    def __init__(self, method: str, provider: TracerProvider | None) -> None:
        self.metadata: Metadata = ()
        self._span = None
        if provider is None and "opentelemetry.trace" not in sys.modules:
            return
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer = trace.get_tracer("zfserve", tracer_provider=provider)
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        self._span = tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(self._span))
        self.metadata = tuple(carrier.items())

    def end(self, code: grpc.StatusCode) -> None:
        """Ends the span with the call's status. A client span counts every status but OK as an error."""
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.response.status_code", code.name)
        if code is not grpc.StatusCode.OK:
            self._span.set_attribute("error.type", code.name)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


@contextmanager
def traced(method: str, provider: TracerProvider | None) -> Iterator[Metadata]:
    """Surrounds one call with its span, and yields the metadata to send. The body raises a ZfserveError if it fails."""
    span = CallSpan(method, provider)
    code = grpc.StatusCode.CANCELLED  # the status of a stream that is closed early, and of an interrupted call
    try:
        yield span.metadata
        code = grpc.StatusCode.OK
    except ZfserveError as error:
        code = error.code
        raise
    finally:
        span.end(code)
