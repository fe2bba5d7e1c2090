"""Sends spans to a collector. Server and worker call `open_tracing` if tracing is on.

Only `open_tracing` imports OpenTelemetry's SDK and its OTLP exporter, because they come with the extra `tracing`.
docs/tracing.md is for operators.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from zfserve_protos.extras import not_installed

from zfserve_runtime.telemetry.tracing import Tracers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

FLUSH_S = 2.0
"""When the process ends, it tries for this many seconds to send the last spans. An unreachable collector delays the end
no longer."""


class TracingError(ValueError):
    """Tracing is on, but traces cannot be sent. The message says why in one sentence."""


def endpoint_in(environment: Mapping[str, str]) -> str | None:
    """Returns the endpoint that OpenTelemetry's own variables name, or None if they name none or turn traces off.

    Source: opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.

    Raises:
        TracingError: the variables ask for another protocol than gRPC.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None

    def setting(name: str) -> str | None:
        return environment.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environment.get(f"OTEL_EXPORTER_OTLP_{name}")

    endpoint, protocol = setting("ENDPOINT"), setting("PROTOCOL") or "grpc"
    if endpoint and protocol != "grpc":
        raise TracingError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}, and traces are sent by grpc only; set it to grpc, and the "
            "endpoint to the collector's port for that, usually 4317"
        )
    return endpoint


@contextmanager
def open_tracing(service: str, endpoint: str, ratio: float | None) -> Iterator[Tracers]:
    """Yields tracers whose spans go to `endpoint`. Sends the last spans when the block ends.

    OpenTelemetry's other variables (headers, certificates, resource attributes, batch sizes) apply too. Ended spans
    wait in a bounded queue, from which a thread sends them. If the queue is full, spans are dropped.

    Args:
        service: the name of this process's spans. OTEL_SERVICE_NAME takes precedence.
        endpoint: a collector that takes OTLP over gRPC, `http://HOST:4317` or `https://HOST:4317`.
        ratio: the share of calls to trace, in [0, 1]. If the caller of a call traces, the caller decides instead. None:
            OTEL_TRACES_SAMPLER decides, and by default every call is traced.

    Raises:
        TracingError: OpenTelemetry is not installed, the endpoint is not of that form, or a variable is unusable.
    """
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise TracingError(f"the OTLP endpoint {endpoint!r} is not of the form http://HOST:PORT or https://HOST:PORT")
    try:
        pipeline = _build_pipeline(service, endpoint, ratio)
    except ModuleNotFoundError as error:
        raise TracingError(f"traces cannot be sent: {not_installed(str(error.name), 'tracing')}") from error
    except Exception as error:  # each variable has its own kind of error
        raise TracingError(f"OpenTelemetry cannot be set up: {error}") from error
    try:
        yield Tracers(pipeline.calls.get_tracer("zfserve"), pipeline.batches.get_tracer("zfserve"))
    finally:
        _shut_down(pipeline)


class _Pipeline(NamedTuple):
    """Holds the exporter, and the two providers whose spans it sends."""

    exporter: SpanExporter
    calls: TracerProvider
    batches: TracerProvider


def _build_pipeline(service: str, endpoint: str, ratio: float | None) -> _Pipeline:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased

    own = {SERVICE_VERSION: importlib.metadata.version("zfserve")}
    if SERVICE_NAME not in OTELResourceDetector().detect().attributes:
        own[SERVICE_NAME] = service
    resource = Resource.create(own)
    sampler = None if ratio is None else ParentBased(TraceIdRatioBased(ratio))
    exporter = OTLPSpanExporter(endpoint)
    calls = TracerProvider(sampler, resource, shutdown_on_exit=False)
    # A batch is the root of its own trace, so a sampler with a ratio would decide again. But a batch must be traced if
    # one of its rows is.
    batches = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
    processor = BatchSpanProcessor(exporter)
    for provider in (calls, batches):
        provider.add_span_processor(processor)
    return _Pipeline(exporter, calls, batches)


def _shut_down(pipeline: _Pipeline) -> None:
    """Sends the waiting spans, for at most `FLUSH_S`, and stops. The two providers share one processor."""
    flushing = threading.Thread(target=pipeline.calls.shutdown, name="traces", daemon=True)
    flushing.start()
    flushing.join(FLUSH_S)
    pipeline.exporter.shutdown()  # this ends an export that still tries to connect
    flushing.join(FLUSH_S)
