"""A span for each call, and the metadata by which the service continues its trace. Used by both clients.

Only where the application itself traces: it has then imported OpenTelemetry, which this package neither needs nor
imports by itself. Names: OpenTelemetry's semantic conventions for RPC.
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

CLASSIFY = "zfserve.v1.VisionService/Classify"
PROJECT = "zfserve.v1.VisionService/Project"
DESCRIBE = "zfserve.v1.VisionService/DescribeModel"
LIST = "zfserve.v1.VisionService/ListModels"

Metadata = tuple[tuple[str, str], ...]


class CallSpan:
    """The span of one call that begins now, a child of the one that is current in the application.

    Args:
        provider: None for the application's global one; without that, or without OpenTelemetry, there is no span.

    Attributes:
        metadata: to send with the call: a W3C traceparent, or nothing.
    """

    def __init__(self, method: str, provider: TracerProvider | None) -> None:
        self.metadata: Metadata = ()
        self._span = None
        if provider is None and "opentelemetry.trace" not in sys.modules:
            return
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer = trace.get_tracer("zfserve", tracer_provider=provider)
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        self._span = tracer.start_span(method, kind=trace.SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(self._span))
        self.metadata = tuple(carrier.items())

    def end(self, code: grpc.StatusCode) -> None:
        """Whatever the status, but OK, is an error to its caller."""
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
    """Around one call, whose failure is raised as a ZfserveError; gives the metadata to send with it."""
    span = CallSpan(method, provider)
    code = grpc.StatusCode.CANCELLED  # what closing a stream early, or an interrupt, makes of a call
    try:
        yield span.metadata
        code = grpc.StatusCode.OK
    except ZfserveError as error:
        code = error.code
        raise
    finally:
        span.end(code)
