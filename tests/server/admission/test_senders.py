"""Who is recognised in a call, and the rate that each is held to."""

from typing import Any

import grpc
import pytest
from fakes.clock import Clock
from fakes.metadata_only import MetadataOnly
from fakes.serving import FakeEngine, classify_request, running_server
from hypothesis import given
from hypothesis import strategies as st
from zfserve_runtime.errors import InvalidInput, RateExceeded, ServiceError
from zfserve_runtime.grpc.status import from_call_error
from zfserve_server.admission.senders import Priority, Sender, Senders


def recognise(senders: Senders, *metadata: tuple[str, str], **call: Any) -> Sender:
    return senders.recognise(MetadataOnly(*metadata, **call))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metadata", "peer", "sender"),
    [
        ((), "ipv4:10.0.0.1:4711", Sender("ipv4:10.0.0.1")),
        ((), "ipv6:%5B::1%5D:4711", Sender("ipv6:%5B::1%5D")),
        ((), "unix:", Sender("unix:")),
        ((("x-client-id", "shop"),), "ipv4:10.0.0.1:4711", Sender("shop")),
        ((("x-priority", "bulk"),), "unix:", Sender("unix:", Priority.BULK)),
        ((("x-priority", "interactive"), ("x-client-id", "shop")), "unix:", Sender("shop")),
    ],
)
def test_a_sender_is_known_by_its_id_else_by_its_address(
    metadata: tuple[tuple[str, str], ...], peer: str, sender: Sender
) -> None:
    assert recognise(Senders(), *metadata, peer=peer) == sender


@pytest.mark.parametrize("metadata", [("x-priority", "urgent"), ("x-priority", ""), ("x-client-id", "c" * 65)])
def test_what_cannot_be_meant_is_refused_and_named(metadata: tuple[str, str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        recognise(Senders(), metadata)
    assert refused.value.field == metadata[0]


def told_to_wait_s(senders: Senders) -> float:
    try:
        recognise(senders)
    except RateExceeded as refused:
        return refused.retry_after_s or 0
    return 0


@given(
    st.floats(0.1, 1000), st.integers(1, 50), st.lists(st.floats(0, 3, allow_subnormal=False), min_size=60, max_size=60)
)
def test_a_client_gets_its_burst_and_then_its_rate_and_no_more(rate: float, burst: int, pauses: list[float]) -> None:
    """Over any stretch of time at most `burst + rate x time`; and whoever waits as long as told gets through."""
    clock = Clock()
    senders = Senders(rate, burst, clock)
    passed: list[float] = []
    for number in range(burst):
        recognise(senders)
        passed.append(clock.now_s)
        assert number < burst
    for pause in pauses:
        clock.now_s += pause / rate
        if wait_s := told_to_wait_s(senders):
            assert wait_s <= 1 / rate * 1.000001
            clock.now_s += wait_s * 1.000001
            assert told_to_wait_s(senders) == 0
        passed.append(clock.now_s)
    for first, began in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - began) + 1e-3


def test_clients_do_not_share_their_rates_and_those_that_stay_away_are_forgotten() -> None:
    clock = Clock()
    senders = Senders(rate=1.0, burst=2, clock=clock)
    for number in range(1000):
        clock.now_s += 1.0
        for _ in range(2):
            recognise(senders, ("x-client-id", str(number)))
        with pytest.raises(RateExceeded):
            recognise(senders, ("x-client-id", str(number)))
    assert senders.remembered <= 3


async def test_the_service_answers_whoever_sends_too_much_or_nonsense(engine: FakeEngine) -> None:
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
        nonsense = await refusal(other, ("x-priority", "asap"))
        assert isinstance(nonsense, InvalidInput)
        assert nonsense.field == "x-priority"
