"""Calls that a client keeps back from a service that refuses most of them: the rule by hand, over time, and in both
clients."""

import asyncio
import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from typing import Any

import grpc
import pytest
from fakes.clock import Clock
from fakes.vision_service import Failure, FakeVisionService
from hypothesis import given
from hypothesis import strategies as st
from zfserve import AsyncClient, Client, InvalidInput, Overloaded, ZfserveError
from zfserve.throttle import FREE, MEMORY_S, SENT_FOR_EACH_TAKEN, THROTTLED, Throttle

Ask = Callable[..., Any]

REFUSED = Overloaded("no.", grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.25)
BUSY = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", pushback_ms=-1)


def call(throttle: Throttle, error: BaseException | None = None) -> bool:
    """Whether it was sent, to a service that answers it, or ends it so."""
    try:
        throttle.check()
    except Overloaded:
        return False
    with suppress(BaseException), throttle.hearing():
        if error is not None:
            raise error
    return True


@pytest.mark.parametrize(
    ("taken", "refused", "kept_back"),
    [
        (0, 10, 0.0),  # the free ones
        (0, 40, 0.75),  # 10 of 40 are sent
        (5, 5, 0.0),
        (10, 50, 0.5),  # 2 x 10 + 10 of 60
        (100, 110, 0.0),  # 2 x 100 + 10 of 210
        (100, 0, 0.0),
    ],
)
def test_the_share_that_is_kept_back(taken: int, refused: int, kept_back: float) -> None:
    chance = 0.999
    throttle = Throttle(clock=Clock(), chance=lambda: chance)
    for error in [None] * taken + [REFUSED] * refused:
        assert call(throttle, error)
    chance = max(0.0, kept_back - 0.001)
    assert call(throttle) == (kept_back == 0)
    chance = kept_back + 0.001 + 1 / (taken + refused)
    assert call(throttle)


def test_what_is_kept_back_says_why_and_when_to_try_again() -> None:
    throttle = Throttle(clock=Clock(), chance=lambda: 0.0)
    while call(throttle, REFUSED):
        pass
    with pytest.raises(Overloaded, match="was not sent") as caught, throttle.asking():
        pytest.fail("it was to be kept back")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (caught.value.reason, caught.value.retry_after_s) == (THROTTLED, 0.25)


@pytest.mark.parametrize("error", [InvalidInput("no.", grpc.StatusCode.INVALID_ARGUMENT), GeneratorExit()])
def test_a_call_that_ends_otherwise_was_not_refused(error: BaseException) -> None:
    throttle = Throttle(clock=Clock(), chance=lambda: 0.0)
    assert all(call(throttle, error) for _ in range(100))


def test_refusals_are_forgotten() -> None:
    clock = Clock()
    throttle = Throttle(clock=clock, chance=lambda: 0.0)
    while call(throttle, REFUSED):
        pass
    clock.now_s += MEMORY_S
    assert call(throttle)


def test_without_a_limit_nothing_is_kept_back() -> None:
    throttle = Throttle(math.inf, Clock(), lambda: 0.0)
    assert all(call(throttle, REFUSED) for _ in range(100))


def sent_a_second(throttle: Throttle, clock: Clock, offered: int, taken: int, seconds: int) -> list[int]:
    """How many of the `offered` calls were sent in each second to a service that takes on so many a second."""
    counts = []
    for _ in range(seconds):
        sent = 0
        for _ in range(offered):
            clock.now_s += 1 / offered
            sent += call(throttle, None if sent < taken else REFUSED)
        counts.append(sent)
    return counts


def evenly() -> Iterator[float]:
    """Chances without the luck: any stretch of them fills [0, 1) evenly (Weyl, 1916)."""
    return (place * (math.sqrt(5) - 1) / 2 % 1 for place in itertools.count())


@given(st.integers(5, 50), st.integers(1, 10))
def test_about_twice_of_what_is_taken_on_is_sent_and_all_once_there_is_room(taken: int, times: int) -> None:
    clock, offered = Clock(), taken * times
    throttle = Throttle(clock=clock, chance=evenly().__next__)
    crowded = sent_a_second(throttle, clock, offered, taken, 40)[20:]
    wanted = min(offered, SENT_FOR_EACH_TAKEN * taken + FREE / MEMORY_S)
    assert sum(crowded) / 20 == pytest.approx(wanted, rel=0.05)
    assert sum(sent_a_second(throttle, clock, offered, offered, 40)[30:]) == 10 * offered


def test_a_service_that_took_on_nothing_for_long_has_all_calls_again_soon() -> None:
    clock = Clock()
    throttle = Throttle(clock=clock, chance=random.Random(1).random)
    assert sum(sent_a_second(throttle, clock, 200, 0, 120)[60:]) / 60 == pytest.approx(FREE / MEMORY_S, rel=0.25)
    assert sum(sent_a_second(throttle, clock, 200, 200, 45)[30:]) == 15 * 200


async def _call_async(address: str, method: str, times: int, **settings: Any) -> list[str]:
    reasons = []
    async with AsyncClient(address, **settings) as client:
        for _ in range(times):
            try:
                if method == "classify":
                    await client.classify(b"1")
                else:
                    async with aclosing(client.project(b"1", "conv1", strongest=1)) as projections:
                        await anext(projections)
                reasons.append("")
            except ZfserveError as error:
                reasons.append(error.reason)
    return reasons


def _call_sync(address: str, method: str, times: int, **settings: Any) -> list[str]:
    reasons = []
    with Client(address, **settings) as client:
        for _ in range(times):
            try:
                if method == "classify":
                    client.classify(b"1")
                else:
                    next(client.project(b"1", "conv1", strongest=1))
                reasons.append("")
            except ZfserveError as error:
                reasons.append(error.reason)
    return reasons


@pytest.fixture(params=[_call_sync, lambda *args, **settings: asyncio.run(_call_async(*args, **settings))])
def call_often(request: pytest.FixtureRequest) -> Ask:
    """So many calls of a method by one client, one after the other: the reason of each one's failure."""
    chosen: Ask = request.param
    return chosen


@pytest.mark.parametrize("method", ["classify", "project"])
def test_both_clients_keep_calls_back(call_often: Ask, method: str, address: str, service: FakeVisionService) -> None:
    service.failures = [BUSY] * 60
    reasons = call_often(address, method, 60)
    seen = len(service.classify_requests) + len(service.project_requests)
    assert FREE <= seen == reasons.count("OVERLOADED")
    assert reasons.count(THROTTLED) == 60 - seen > 0


def test_methods_are_apart(address: str, service: FakeVisionService) -> None:
    service.failures = [BUSY] * 60
    with Client(address) as client:
        for _ in range(60):
            with suppress(Overloaded):
                client.classify(b"1")
        service.failures = []
        assert all(list(client.project(b"1", "conv1", strongest=1)) for _ in range(20))
        assert client.describe().model.name == "zfnet"


def test_it_can_be_turned_off(call_often: Ask, address: str, service: FakeVisionService) -> None:
    service.failures = [BUSY] * 60
    assert call_often(address, "classify", 60, adaptive_throttling=False) == ["OVERLOADED"] * 60


def test_of_many_photos_those_kept_back_come_later(ask: Ask, address: str, service: FakeVisionService) -> None:
    service.failures = [
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.01, pushback_ms=-1)
    ] * 15
    answers = ask(address, "classify_many", [b"1"] * 30)
    assert [answer for answer in answers if isinstance(answer, ZfserveError)] == []
    assert len(service.classify_requests) == 45
