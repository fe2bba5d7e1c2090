"""Tests calls that are not traced. The tests of the server and of the worker check the spans of traced calls."""

import asyncio

from opentelemetry.trace import INVALID_SPAN
from zfserve_runtime.telemetry import tracing
from zfserve_runtime.telemetry.tracing import NO_TRACERS, UNTRACED


def test_outside_a_traced_call_nothing_is_recorded() -> None:
    with tracing.span("decode") as span, tracing.outgoing_call("a.B/C") as metadata:
        tracing.note_model("zfnet", "1")
    assert (span, metadata, tracing.current_trace_id()) == (INVALID_SPAN, (), "")
    assert tracing.current_trace() is UNTRACED
    assert UNTRACED.attributes == {}, "it stands for every call that is not traced"


async def test_without_a_recording_tracer_even_a_callers_trace_is_not_continued() -> None:
    sent = (("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),)

    async def serve() -> tuple[str, tracing.Metadata]:
        tracing.start_call(NO_TRACERS, "/a.B/C", "r1", sent)
        with tracing.outgoing_call("d.E/F") as metadata:
            return tracing.current_trace_id(), metadata

    assert await asyncio.create_task(serve()) == ("", ())
