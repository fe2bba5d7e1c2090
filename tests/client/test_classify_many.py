"""Tests `classify_many` of both clients. A test with `ask` runs once for each client."""

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.vision_service import Failure, FakeVisionService
from zfserve import Client, ImageReference, InvalidInput, Overloaded

Ask = Any


def test_many_in_order_with_a_failure_in_its_place(
    ask: Ask, address: str, service: FakeVisionService, tmp_path: Path
) -> None:
    photos = [bytes(length) for length in range(1, 10)]
    answers = ask(address, "classify_many", [*photos, tmp_path / "none.jpg", b"123"], in_flight=4)
    assert [getattr(answer, "image_reference", None) for answer in answers] == [
        *(ImageReference(f"ref-{length}") for length in range(1, 10)),
        None,
        ImageReference("ref-3"),
    ]
    assert isinstance(answers[9], InvalidInput)
    assert service.most_at_once <= 4


def test_a_photo_is_sent_again_when_a_busy_server_says(ask: Ask, address: str, service: FakeVisionService) -> None:
    busy = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.01, pushback_ms=-1)
    service.failures = [busy] * 7
    answers = ask(address, "classify_many", [b"1", b"22", b"333"])
    assert [answer.image_reference for answer in answers] == [ImageReference(f"ref-{length}") for length in (1, 2, 3)]
    assert len(service.classify_requests) == 10
    service.failures = [replace(busy, retry_after_s=60.0)]
    (refused,) = ask(address, "classify_many", [b"1"], timeout_s=5.0)
    assert isinstance(refused, Overloaded), "there is no time left for a retry"


def test_at_least_one_photo_must_be_in_flight(ask: Ask, address: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ask(address, "classify_many", [b"1"], in_flight=0)


def test_several_photos_are_in_flight_at_once(ask: Ask, address: str, service: FakeVisionService) -> None:
    service.open.clear()

    def release() -> None:
        for _ in range(3):
            assert service.arrived.acquire(timeout=30)
        service.open.set()

    releasing = threading.Thread(target=release)
    releasing.start()
    assert len(ask(address, "classify_many", [b"1"] * 6, in_flight=3)) == 6
    releasing.join()
    assert service.most_at_once == 3


def test_closing_the_generator_reads_no_more_photos(address: str, service: FakeVisionService) -> None:
    taken: list[bytes] = []

    def photos() -> Any:
        for length in range(1, 100):
            taken.append(bytes(length))
            yield taken[-1]

    with Client(address) as client, closing(client.classify_many(photos(), in_flight=4)) as answers:
        next(answers)
    assert len(taken) <= 5
