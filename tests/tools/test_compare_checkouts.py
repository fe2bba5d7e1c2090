"""The comparison of checkouts: its arithmetic by hand, and its load against a call that only counts."""

import asyncio
import os

from tools.compare_checkouts import CALLERS, CALLS, call_together, cpu_ms, describe, lone_latency_ms


def test_a_difference_is_told_with_its_standard_error() -> None:
    # Differences of 0.1, 0.3 and 0.2 have a mean of 0.2 and a deviation of 0.1; the error is 0.1 / sqrt(3).
    assert describe([1.1, 2.3, 3.2], [1.0, 2.0, 3.0]) == "2.300 (+0.200 ± 0.058)"


def test_cpu_time_only_grows() -> None:
    before = cpu_ms(os.getpid())
    while cpu_ms(os.getpid()) == before:
        sum(range(100_000))
    assert cpu_ms(os.getpid()) > before


async def test_callers_share_the_calls() -> None:
    in_flight, most, total = 0, 0, 0

    async def call(request: bytes) -> bytes:
        nonlocal in_flight, most, total
        in_flight += 1
        most, total = max(most, in_flight), total + 1
        await asyncio.sleep(0)
        in_flight -= 1
        return request

    await call_together(call, b"photo")
    assert (most, total) == (CALLERS, CALLS)
    assert await lone_latency_ms(call, b"photo") > 0
