import json
from dataclasses import asdict
from pathlib import Path

import pytest
from zfserve_bench.load.protocol import (
    NOT_SENT,
    Call,
    Kind,
    OpenLoop,
    Sender,
    Stream,
    read_requests,
    tally,
    write_requests,
)


def test_requests_survive_the_files(tmp_path: Path) -> None:
    requests = {Kind.RAW: [b"", b"one", bytes(range(256)) * 700], Kind.PROJECT: [b"two"]}
    write_requests(tmp_path, requests)
    assert read_requests(tmp_path) == requests


def test_an_order_survives_json() -> None:
    streams = (Stream("one", Kind.JPEG, 2.5, "bulk"), Stream("two", Kind.RAW, 1.0))
    order = OpenLoop(streams, Sender.CLIENT, random_arrivals=True, deadline_s=3.0)
    parsed = OpenLoop.from_json(json.loads(json.dumps(asdict(order))))
    assert parsed == order
    assert parsed.sender is Sender.CLIENT
    assert parsed.streams[0].kind is Kind.JPEG


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        (Kind.RAW, "OK", True),
        (Kind.RAW, "CANCELLED", False),
        (Kind.RAW, NOT_SENT, False),
        (Kind.BAD_INPUT, "INVALID_ARGUMENT", True),
        (Kind.BAD_INPUT, "OK", False),
        (Kind.BAD_INPUT, "INTERNAL", False),
        (Kind.CANCELLED_PROJECT, "CANCELLED", True),
    ],
)
def test_calls_that_should_fail_must_fail(kind: Kind, status: str, expected: bool) -> None:
    assert Call(kind, status, 0, 0).as_expected is expected


def test_a_tally_counts_calls_by_stream_and_status() -> None:
    calls = [Call(Kind.RAW, "OK", 0, 0), Call(Kind.RAW, "OK", 1, 0), Call(Kind.RAW, NOT_SENT, 2, 0)]
    assert tally(calls) == "classify raw NOT_SENT 1, classify raw OK 2"
