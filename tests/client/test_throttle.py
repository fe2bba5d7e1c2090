"""Tests adaptive throttling: its rule by hand-computed values, its behaviour over time, and its use in both clients."""

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
from zfserve.throttle import ACCEPTS_MULTIPLIER, ALLOWANCE, MEMORY_S, THROTTLED, Throttle

Ask = Callable[..., Any]

REFUSED = Overloaded("no.", grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.25)
BUSY = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", pushback_ms=-1)


def call(throttle: Throttle, error: BaseException | None = None) -> bool:
    """Makes a call that ends with `error`. Returns False if the throttle did not let it be sent."""
    try:
        throttle.check()
    except Overloaded:
        return False
    with suppress(BaseException), throttle.record():
        if error is not None:
            raise error
    return True


@pytest.mark.parametrize(
    ("accepted", "refused", "not_sent"),
    [
        (0, 10, 0.0),  # the allowance
        (0, 40, 0.75),  # 10 of 40 are sent
        (5, 5, 0.0),
        (10, 50, 0.5),  # 2 x 10 + 10 of 60
        (100, 110, 0.0),  # 2 x 100 + 10 of 210
        (100, 0, 0.0),
    ],
)
def test_the_share_of_calls_that_is_not_sent(accepted: int, refused: int, not_sent: float) -> None:
    chance = 0.999
    throttle = Throttle(clock=Clock(), chance=lambda: chance)
    for error in [None] * accepted + [REFUSED] * refused:
        assert call(throttle, error)
    chance = max(0.0, not_sent - 0.001)
    assert call(throttle) == (not_sent == 0)
    chance = not_sent + 0.001 + 1 / (accepted + refused)
    assert call(throttle)


def test_the_error_of_a_call_that_is_not_sent_says_why_and_when_to_retry() -> None:
    throttle = Throttle(clock=Clock(), chance=lambda: 0.0)
    while call(throttle, REFUSED):
        pass
    with pytest.raises(Overloaded, match="did not send this one") as caught, throttle.limit():
        pytest.fail("the call was sent")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (caught.value.reason, caught.value.retry_after_s) == (THROTTLED, 0.25)


@pytest.mark.parametrize("error", [InvalidInput("no.", grpc.StatusCode.INVALID_ARGUMENT), GeneratorExit()])
def test_a_call_with_another_error_was_accepted(error: BaseException) -> None:
    throttle = Throttle(clock=Clock(), chance=lambda: 0.0)
    assert all(call(throttle, error) for _ in range(100))


def test_refusals_are_forgotten() -> None:
    clock = Clock()
    throttle = Throttle(clock=clock, chance=lambda: 0.0)
    while call(throttle, REFUSED):
        pass
    clock.now_s += MEMORY_S
    assert call(throttle)


def test_an_infinite_allowance_sends_every_call() -> None:
    throttle = Throttle(math.inf, Clock(), lambda: 0.0)
    assert all(call(throttle, REFUSED) for _ in range(100))


def sent_per_second(throttle: Throttle, clock: Clock, offered: int, capacity: int, seconds: int) -> list[int]:
    """Returns how many of the `offered` calls were sent in each second. The service accepts `capacity` a second."""
    counts = []
    for _ in range(seconds):
        sent = 0
        for _ in range(offered):
            clock.now_s += 1 / offered
            sent += call(throttle, None if sent < capacity else REFUSED)
        counts.append(sent)
    return counts


def even_chances() -> Iterator[float]:
    """Yields numbers of which any run fills [0, 1) evenly, so that the test depends on no luck (Weyl, 1916)."""
    return (place * (math.sqrt(5) - 1) / 2 % 1 for place in itertools.count())


@given(st.integers(5, 50), st.integers(1, 10))
def test_twice_the_capacity_is_sent_and_all_calls_once_there_is_room(capacity: int, times: int) -> None:
    clock, offered = Clock(), capacity * times
    throttle = Throttle(clock=clock, chance=even_chances().__next__)
    overloaded = sent_per_second(throttle, clock, offered, capacity, 40)[20:]
    wanted = min(offered, ACCEPTS_MULTIPLIER * capacity + ALLOWANCE / MEMORY_S)
    assert sum(overloaded) / 20 == pytest.approx(wanted, rel=0.05)
    assert sum(sent_per_second(throttle, clock, offered, offered, 40)[30:]) == 10 * offered


def test_a_service_that_refused_everything_for_long_soon_gets_all_calls_again() -> None:
    clock = Clock()
    throttle = Throttle(clock=clock, chance=random.Random(1).random)
    assert sum(sent_per_second(throttle, clock, 200, 0, 120)[60:]) / 60 == pytest.approx(ALLOWANCE / MEMORY_S, rel=0.25)
    assert sum(sent_per_second(throttle, clock, 200, 200, 45)[30:]) == 15 * 200


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
    """Returns `call_often(address, method, times)`. It makes calls in sequence with one client, and returns the
    reason of each error, or "" for a call that succeeds."""
    chosen: Ask = request.param
    return chosen


@pytest.mark.parametrize("method", ["classify", "project"])
def test_both_clients_throttle(call_often: Ask, method: str, address: str, service: FakeVisionService) -> None:
    service.failures = [BUSY] * 60
    reasons = call_often(address, method, 60)
    sent = len(service.classify_requests) + len(service.project_requests)
    assert ALLOWANCE <= sent == reasons.count("OVERLOADED")
    assert reasons.count(THROTTLED) == 60 - sent > 0


def test_each_method_has_its_own_throttle(address: str, service: FakeVisionService) -> None:
    service.failures = [BUSY] * 60
    with Client(address) as client:
        for _ in range(60):
            with suppress(Overloaded):
                client.classify(b"1")
        service.failures = []
        assert all(list(client.project(b"1", "conv1", strongest=1)) for _ in range(20))
        assert client.describe().model.name == "zfnet"


def test_throttling_can_be_turned_off(call_often: Ask, address: str, service: FakeVisionService) -> None:
    service.failures = [BUSY] * 60
    assert call_often(address, "classify", 60, adaptive_throttling=False) == ["OVERLOADED"] * 60


def test_classify_many_sends_throttled_photos_later(ask: Ask, address: str, service: FakeVisionService) -> None:
    service.failures = [
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.01, pushback_ms=-1)
    ] * 15
    answers = ask(address, "classify_many", [b"1"] * 30)
    assert [answer for answer in answers if isinstance(answer, ZfserveError)] == []
    assert len(service.classify_requests) == 45
