"""This OpenTelemetry collector keeps the spans it receives, so that tests see traces as an operator does."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class ReceivedSpan:
    """Holds a span as it was received.

    Attributes:
        trace, id, parent: ids in hex. The parent of a root span is "".
        links: the ids of the linked spans, in hex.
    """

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: frozenset[str]
    attributes: dict[str, Any]
    failed: bool
    began_ns: int
    ended_ns: int


class Collector(TraceServiceServicer):
    """Receives spans over gRPC while the block of `listening` runs.

    Attributes:
        spans: the spans in the order of their arrival.
        metadata: the metadata of the newest export.
    """

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.metadata: dict[str, str | bytes] = {}

    def Export(  # noqa: N802
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self.metadata = dict(context.invocation_metadata())
        for resource in request.resource_spans:
            service = str(_attributes(resource.resource.attributes)["service.name"])
            self.spans += [_received(service, span) for scope in resource.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Starts to listen and yields the URL of the collector. Stops at the end of the block."""
        server = grpc.server(ThreadPoolExecutor(1))
        add_TraceServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(None).wait()

    def named(self, name: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name]

    def only(self, name: str, kind: str | None = None) -> ReceivedSpan:
        (span,) = [span for span in self.named(name) if kind in (None, span.kind)]
        return span

    def children(self, parent: ReceivedSpan) -> list[str]:
        """Returns the names of the children, in the order in which they began."""
        inside = [span for span in self.spans if span.parent == parent.id]
        return [span.name for span in sorted(inside, key=lambda span: span.began_ns)]


def _received(service: str, span: Span) -> ReceivedSpan:
    return ReceivedSpan(
        service,
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        frozenset(link.span_id.hex() for link in span.links),
        _attributes(span.attributes),
        span.status.code == span.status.STATUS_CODE_ERROR,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
