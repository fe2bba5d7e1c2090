"""Each client gets its burst and then its rate, alone and through the service."""

import grpc
import pytest
from fakes.clock import Clock
from fakes.serving import FakeEngine, classify_request, running_server
from hypothesis import given
from hypothesis import strategies as st
from zfserve_runtime.errors import InvalidInput, RateExceeded, ServiceError
from zfserve_runtime.grpc.status import from_call_error
from zfserve_server.admission.rate_limit import RateLimit


def retry_after_s(limit: RateLimit) -> float:
    """Returns how long the limit says to wait; 0 where it lets the request pass."""
    try:
        limit.take("shop")
    except RateExceeded as refused:
        return refused.retry_after_s or 0
    return 0


@given(
    st.floats(0.1, 1000), st.integers(1, 50), st.lists(st.floats(0, 3, allow_subnormal=False), min_size=60, max_size=60)
)
def test_a_client_gets_its_burst_and_then_its_rate_and_no_more(rate: float, burst: int, pauses: list[float]) -> None:
    """In any interval of `time` seconds, at most `burst + rate x time` requests pass.

    A request passes after the delay that the refusal named.
    """
    clock = Clock()
    limit = RateLimit(rate, burst, clock)
    passed: list[float] = []
    for number in range(burst):
        limit.take("shop")
        passed.append(clock.now_s)
        assert number < burst
    for pause in pauses:
        clock.now_s += pause / rate
        if wait_s := retry_after_s(limit):
            assert wait_s <= 1 / rate * 1.000001
            clock.now_s += wait_s * 1.000001
            assert retry_after_s(limit) == 0
        passed.append(clock.now_s)
    for first, began in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - began) + 1e-3


def test_clients_do_not_share_a_limit_and_full_buckets_are_dropped() -> None:
    clock = Clock()
    limit = RateLimit(rate=1.0, burst=2, clock=clock)
    for number in range(1000):
        clock.now_s += 1.0
        for _ in range(2):
            limit.take(str(number))
        with pytest.raises(RateExceeded):
            limit.take(str(number))
    assert len(limit) <= 3


def test_without_a_rate_nothing_is_limited_and_nothing_is_kept() -> None:
    limit = RateLimit()
    for _ in range(10_000):
        limit.take("shop")
    assert len(limit) == 0


async def test_the_service_refuses_a_client_above_its_rate_and_invalid_metadata(engine: FakeEngine) -> None:
    async def refusal(*metadata: tuple[str, str]) -> ServiceError | None:
        try:
            await server.vision.Classify(classify_request(1), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return from_call_error(error)
        return None

    async with running_server(engine, client_rate=0.001, client_burst=2) as server:
        busy, other = ("x-client-id", "busy"), ("x-client-id", "other")
        assert [await refusal(busy), await refusal(busy)] == [None, None]
        refused = await refusal(busy)
        assert isinstance(refused, RateExceeded)
        assert refused.retry_after_s == pytest.approx(1000.0, rel=0.1)
        assert await refusal(other, ("x-priority", "bulk")) is None
        invalid = await refusal(other, ("x-priority", "asap"))
        assert isinstance(invalid, InvalidInput)
        assert invalid.field == "x-priority"
