"""Tests which refused calls have a line in the log, and how the others are counted."""

import asyncio
import logging

import pytest
from fakes.scripted_server import ScriptedServer, failure_of, raising
from google.protobuf.empty_pb2 import Empty
from zfserve_runtime import errors
from zfserve_runtime.telemetry import log_limiter


async def test_only_the_first_of_many_refused_calls_have_a_line_in_the_log(
    scripted: ScriptedServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(log_limiter, "INTERVAL_S", 60.0)

    def lines() -> int:
        return sum(record.getMessage() == "call" for record in caplog.records)

    scripted.behaviour = raising(errors.Overloaded("Try again in a second.", retry_after_s=1))
    refused = log_limiter.LINES_PER_INTERVAL + 5
    await asyncio.gather(*(failure_of(scripted.unary(Empty())) for _ in range(refused)))
    assert lines() == log_limiter.LINES_PER_INTERVAL
    assert scripted.count("RESOURCE_EXHAUSTED") == refused, "the metrics count all of them"
    scripted.behaviour = raising(errors.InvalidInput("Send an image."))
    await failure_of(scripted.unary(Empty()))
    assert lines() == log_limiter.LINES_PER_INTERVAL + 1, "other errors have their lines"


async def test_refusals_without_a_line_are_counted_once_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(log_limiter, "INTERVAL_S", 0.01)
    log = log_limiter.LogLimiter()
    for more in (0, 7):
        assert [log.allow_line() for _ in range(log_limiter.LINES_PER_INTERVAL + more)].count(False) == more
        await asyncio.sleep(log_limiter.INTERVAL_S)
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["calls"]) == ("refused more calls", 7)
    assert log.allow_line()
