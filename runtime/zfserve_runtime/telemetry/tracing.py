"""What serving code calls to be traced: tiny functions that do nothing in a call that is not.

One trace for one request, and one for each batch, whose spans are linked, as a batch serves many requests:

    zfserve.v1.VisionService/Classify         batch ──links──▶ the calls of its rows
    ├── decode                                └── engine
    ├── queue
    └── inference ──link──▶ batch

    zfserve.v1.VisionService/Project
    ├── decode
    └── zfserve.worker.v1.WorkerService/Project     the call as the server makes it
        └── zfserve.worker.v1.WorkerService/Project     as the worker serves it
            ├── forward pass
            ├── projection                          for each feature map
            └── render

The interceptor begins a call's trace; from then on it is found in the context, so no tracer is handed around. Nothing
here imports OpenTelemetry: `otlp` does, and only where traces are wanted. docs/tracing.md is for operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from zfserve_protos.extras import not_installed

if TYPE_CHECKING:
    from zfserve_runtime.telemetry.otlp import CallTrace, Tracing

Metadata = tuple[tuple[str, str], ...]

_current: ContextVar[CallTrace | None] = ContextVar("call_trace", default=None)
_NOTHING = nullcontext()


class TracingError(ValueError):
    """Traces are wanted and cannot be sent; says why in one sentence."""


class TracedRow(NamedTuple):
    """One image of a batch whose call is traced; `submitted_s` in seconds of `time.monotonic()`."""

    call: CallTrace
    submitted_s: float


def current_trace() -> CallTrace | None:
    """The trace of the call being served, to draw spans of it later; None where it is not traced."""
    return _current.get()


def current_trace_id() -> str:
    """In 32 hex digits; "" where the call is not traced."""
    call = _current.get()
    return "" if call is None else call.trace_id


def enter_trace(call: CallTrace) -> None:
    """From here on this task serves the call that `call` traces."""
    _current.set(call)


def span(name: str, attributes: Mapping[str, str | int | float] | None = None) -> AbstractContextManager[None]:
    """A step of the call being served, for as long as the block runs."""
    call = _current.get()
    return _NOTHING if call is None else call.step(name, attributes or {})


@contextmanager
def calling(method: str) -> Iterator[Metadata]:
    """A call to another process; its metadata makes the spans over there part of this trace.

    Args:
        method: fully qualified, such as "zfserve.worker.v1.WorkerService/Project".
    """
    call = _current.get()
    if call is None:
        yield ()
        return
    with call.outgoing(method) as metadata:
        yield metadata


def note_model(name: str, version: str) -> None:
    """Say on the span of this call, and on those of its steps from here on, which model serves it."""
    call = _current.get()
    if call is not None:
        call.note({"zfserve.model.name": name, "zfserve.model.version": version})


def record_batch(rows: Sequence[TracedRow], batch_size: int, began_s: float, inference_s: float, failed: bool) -> None:
    """Draw the batch that ends now, and in each row's own trace its wait and its inference.

    Args:
        rows: the traced ones, at least one.
        batch_size: with the rows that are not.
        began_s: when the batch was formed, in seconds of `time.monotonic()`.
        inference_s: from then until the engine had answered.
    """
    rows[0].call.tracing.draw_batch(rows, batch_size, began_s, inference_s, failed)


def endpoint_in(environment: Mapping[str, str]) -> str | None:
    """Where OpenTelemetry's own variables send traces; None where they do not.

    Source: opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.

    Raises:
        TracingError: they ask for another protocol than gRPC.
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


def open_tracing(service: str, endpoint: str, ratio: float | None) -> Tracing:
    """Send traces to `endpoint` until closed. What else OpenTelemetry's variables say (headers, certificates, resource
    attributes, batch sizes) holds too.

    Args:
        service: the name of this process's spans, where OTEL_SERVICE_NAME has no other.
        endpoint: of a collector that takes OTLP over gRPC, `http://HOST:4317`, or https.
        ratio: share traced of the calls that no caller traces; None: what OTEL_TRACES_SAMPLER says, else all. A caller
            that traces decides by itself.

    Raises:
        TracingError: OpenTelemetry is not installed, the endpoint is not of that form, or a variable is unusable.
    """
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise TracingError(f"the OTLP endpoint {endpoint!r} is not of the form http://HOST:PORT or https://HOST:PORT")
    try:
        from zfserve_runtime.telemetry.otlp import Tracing
    except ModuleNotFoundError as error:
        raise TracingError(f"there can be no traces: {not_installed(str(error.name), 'tracing')}") from error
    try:
        return Tracing.to_collector(service, endpoint, ratio)
    except Exception as error:  # as many kinds as there are variables
        raise TracingError(f"OpenTelemetry cannot be set up: {error}") from error
