import asyncio
from pathlib import Path

import pytest
from zfserve_bench.load.closed_loop import (
    Counter,
    Load,
    LoadFailed,
    LoadGenerator,
    Order,
    drive,
    read_requests,
    write_requests,
)
from zfserve_bench.service.throughput import whole_bursts


def test_requests_survive_the_file(tmp_path: Path) -> None:
    requests = [b"", b"one", bytes(range(256)) * 700]
    write_requests(tmp_path / "requests", requests)
    assert read_requests(tmp_path / "requests") == requests


def test_the_clock_runs_from_the_last_answer_of_the_warm_up_to_the_last_one_wanted() -> None:
    counter = Counter(Order(clients=1, warm_up=2, calls=3))
    loads = []
    for _ in range(7):
        counter.answered()
        loads.append(counter.load)
    assert loads[:4] == [None] * 4
    done = loads[4]
    assert done is not None
    assert done.calls == 3
    assert done.seconds > 0
    assert loads[5:] == [done, done], "answers that come later change nothing"


def test_calls_per_second() -> None:
    assert Load(calls=64, seconds=2.0, cpu_s=0.1).calls_per_s == 32


@pytest.mark.parametrize(("calls", "whole"), [(0.3, 32), (40, 32), (50, 64), (100, 96)])
def test_calls_are_counted_in_whole_bursts(calls: float, whole: int) -> None:
    assert whole_bursts(calls) == whole


class CountingCall:
    """Answers at once, and knows how many callers were under way together, and what they sent."""

    def __init__(self) -> None:
        self.under_way = self.most = 0
        self.sent: list[bytes] = []

    async def __call__(self, request: bytes, *, timeout: float) -> bytes:  # noqa: ASYNC109 - as grpc.aio has it
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.sent.append(request)
        await asyncio.sleep(0)
        self.under_way -= 1
        return b""


async def test_so_many_callers_call_at_a_time_and_send_all_requests_in_turn() -> None:
    call = CountingCall()
    load = await drive([call] * 3, [b"a", b"b", b"c"], Order(clients=3, warm_up=3, calls=9))  # type: ignore[list-item]
    assert load.calls == 9
    assert call.most == 3
    assert call.under_way == 0, "nothing is left behind"
    assert 12 <= len(call.sent) <= 15
    assert {request: call.sent.count(request) // 3 for request in (b"a", b"b", b"c")} == {b"a": 1, b"b": 1, b"c": 1}


def test_a_failing_call_fails_the_measurement(tmp_path: Path) -> None:
    nobody = f"unix:{tmp_path}/nobody.sock"
    with LoadGenerator(nobody, [b"request"], tmp_path) as generator, pytest.raises(LoadFailed, match="UNAVAILABLE"):
        generator.measure(Order(clients=2, warm_up=1, calls=1))
