"""Tests the spans of both clients in an application that traces. The tests of the server cover its spans."""

import subprocess
import sys
from typing import Any

import grpc
import pytest
from fakes.vision_service import Failure, FakeVisionService
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id
from zfserve import Client, InvalidInput

Ask = Any


class Application:
    """Stands for an application that traces. It keeps the spans that have ended."""

    def __init__(self) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("application")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())


def traceparent_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


@pytest.mark.parametrize(
    ("method", "arguments", "name"),
    [
        ("classify", (b"1",), "Classify"),
        ("classify_many", ([b"1"],), "Classify"),
        ("project", (b"1", "conv1"), "Project"),
        ("describe", (), "DescribeModel"),
    ],
)
def test_each_call_is_a_span_whose_id_the_service_gets(
    ask: Ask, address: str, service: FakeVisionService, method: str, arguments: tuple[Any, ...], name: str
) -> None:
    application = Application()
    with application.tracer.start_as_current_span("work") as work:
        ask(address, method, *arguments, client={"tracer_provider": application.provider})
    call, _ = application.spans
    assert (call.name, call.kind.name) == (f"zfserve.v1.VisionService/{name}", "CLIENT")
    assert call.parent is not None
    assert call.parent.span_id == work.get_span_context().span_id
    assert call.attributes is not None
    assert call.attributes["rpc.response.status_code"] == "OK"
    assert call.status.is_unset
    assert service.traceparents == [traceparent_of(call)]


def test_the_spans_of_a_failure_and_of_a_closed_stream_are_errors(address: str, service: FakeVisionService) -> None:
    application = Application()
    service.failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT)] * 2
    with Client(address, tracer_provider=application.provider) as client:
        with pytest.raises(InvalidInput):
            client.classify(b"1")
        list(client.classify_many([b"1"]))
        projections = client.project(b"1", "conv1")
        next(projections)
        projections.close()
    codes = [span.attributes["rpc.response.status_code"] for span in application.spans if span.attributes]
    assert codes == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "CANCELLED"]
    assert not any(span.status.is_ok or span.status.is_unset for span in application.spans)


def test_without_tracing_nothing_is_sent_or_imported(address: str, service: FakeVisionService) -> None:
    program = (
        "import sys; from zfserve import Client\n"
        f"Client({address!r}).classify(b'1')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    assert service.traceparents == []
