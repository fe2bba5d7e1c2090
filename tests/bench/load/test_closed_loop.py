import asyncio

import pytest
from zfserve_bench.load.closed_loop import AnswerCounter, run_closed_loop
from zfserve_bench.load.generator import whole_bursts
from zfserve_bench.load.protocol import ClosedLoop, ClosedLoopResult, Kind


def test_the_clock_runs_from_the_end_of_the_warm_up_to_the_last_counted_answer() -> None:
    counter = AnswerCounter(ClosedLoop(Kind.RAW, clients=1, warm_up=2, calls=3))
    results = []
    for _ in range(7):
        counter.answered()
        results.append(counter.result)
    assert results[:4] == [None] * 4
    done = results[4]
    assert done is not None
    assert done.calls == 3
    assert done.seconds > 0
    assert results[5:] == [done, done], "answers that come later change nothing"


def test_calls_per_second() -> None:
    assert ClosedLoopResult(calls=64, seconds=2.0, cpu_s=0.1).calls_per_s == 32


@pytest.mark.parametrize(("calls", "whole"), [(0.3, 32), (40, 32), (50, 64), (100, 96)])
def test_calls_are_counted_in_whole_bursts(calls: float, whole: int) -> None:
    assert whole_bursts(calls) == whole


class CountingCall:
    """Answers at once. Records the largest number of calls in flight and the requests that were sent."""

    def __init__(self) -> None:
        self.in_flight = self.most = 0
        self.sent: list[bytes] = []

    async def __call__(self, request: bytes, *, timeout: float) -> bytes:  # noqa: ASYNC109 - as grpc.aio has it
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self.sent.append(request)
        await asyncio.sleep(0)
        self.in_flight -= 1
        return b""


async def test_each_client_has_one_call_in_flight_and_requests_take_turns() -> None:
    call = CountingCall()
    result = await run_closed_loop([call] * 3, [b"a", b"b", b"c"], ClosedLoop(Kind.RAW, clients=3, warm_up=3, calls=9))  # type: ignore[list-item]
    assert result.calls == 9
    assert call.most == 3
    assert call.in_flight == 0, "nothing is left behind"
    assert 12 <= len(call.sent) <= 15
    assert {request: call.sent.count(request) // 3 for request in (b"a", b"b", b"c")} == {b"a": 1, b"b": 1, b"c": 1}
