"""The load generator: a process of its own, in which so many callers each make one call after the other.

`python -m zfserve_bench.load.closed_loop TARGET`, started by `LoadGenerator`. It stays up between measurements and is
told by lines of JSON on its standard input what to measure next. Requests are bytes made beforehand and answers stay
bytes: clients of a real service run on machines of their own, so what they do with an answer must not cost the cores
measured here.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TypeAlias

import grpc
from zfserve.channel import channel_options, channel_target
from zfserve_cli.service_process import pin_to_cpus
from zfserve_protos.limits import MAX_MESSAGE_BYTES
from zfserve_protos.methods import CLASSIFY

CALL_TIMEOUT_S = 60.0

Call: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class LoadFailed(RuntimeError):
    """A call failed, or the generator itself did; the message is its own."""


@dataclass(frozen=True)
class Order:
    """What to measure.

    Attributes:
        clients: callers at a time, each on a connection of its own; of several servers, on one to each of them.
        warm_up: calls answered before the clock starts.
        calls: calls answered while it runs.
    """

    clients: int
    warm_up: int
    calls: int


@dataclass(frozen=True)
class Load:
    """What was measured.

    Attributes:
        seconds: from the last answer of the warm-up to the last one counted.
        cpu_s: CPU time that this process itself took meanwhile.
    """

    calls: int
    seconds: float
    cpu_s: float

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.seconds


class LoadGenerator:
    """The process, as seen by the benchmark that started it. Leaving the block ends it.

    Args:
        target: address of the server, or of several, parted by commas.
        requests: serialised, sent in turn.
        folder: for the file that hands them over.
        cpus: the only ones it may use; None for all that this process may.
    """

    def __init__(
        self, target: str, requests: Sequence[bytes], folder: Path, cpus: Collection[int] | None = None
    ) -> None:
        file = folder / "requests"
        write_requests(file, requests)
        command = [sys.executable, "-m", "zfserve_bench.load.closed_loop", target, str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        pin_to_cpus(self._process, cpus)

    def measure(self, order: Order) -> Load:
        """Raises LoadFailed where any call fails."""
        assert self._process.stdin is not None, "opened above"
        assert self._process.stdout is not None, "opened above"
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the load generator died"}')
        if "error" in answer:
            raise LoadFailed(answer["error"])
        return Load(**answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()  # it holds nothing
        self._process.communicate()


def write_requests(file: Path, requests: Sequence[bytes]) -> None:
    file.write_bytes(b"".join(len(request).to_bytes(8, "little") + request for request in requests))


def read_requests(file: Path) -> list[bytes]:
    requests, data = [], file.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        requests.append(data[8 : 8 + length])
        data = data[8 + length :]
    return requests


class Counter:
    """Answers as they come in: the clock starts with the last one of the warm-up and ends with the last one wanted.

    Answers come in bursts, a batch at a time. A clock that runs from one answer to another counts whole bursts where
    the number of calls is a multiple of theirs; one that runs for a number of seconds is off by up to a batch.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._seen = 0
        self._started: tuple[float, float]
        self.load: Load | None = None

    def answered(self) -> None:
        self._seen += 1
        if self._seen == self._order.warm_up:
            self._started = time.perf_counter(), time.process_time()
        elif self._seen == self._order.warm_up + self._order.calls:
            seconds, cpu_s = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
            self.load = Load(self._order.calls, seconds, cpu_s)


async def drive(calls: Sequence[Call], requests: Sequence[bytes], order: Order) -> Load:
    """Let `order.clients` callers call until enough was answered, then wait for what is still under way."""
    assert order.warm_up >= 1, "the clock starts with an answer"
    counter = Counter(order)

    async def caller(first: int) -> None:
        position = first
        while counter.load is None:
            await calls[first](requests[position % len(requests)], timeout=CALL_TIMEOUT_S)
            counter.answered()
            position += 1

    async with asyncio.TaskGroup() as callers:
        for index in range(order.clients):
            callers.create_task(caller(index))
    assert counter.load is not None
    return counter.load


async def _obey(target: str, requests: Sequence[bytes]) -> None:
    calls: list[Call] = []
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = Order(**json.loads(line))
        while len(calls) < order.clients:
            calls.append(calls[0] if calls and "," in target else _connect(target).unary_unary(CLASSIFY))
        try:
            answer = asdict(await drive(calls, requests, order))
        except* grpc.aio.AioRpcError as errors:
            first = errors.exceptions[0]
            answer = {"error": f"a call failed: {first}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _connect(target: str) -> grpc.aio.Channel:
    if "," not in target:
        # Channels of one process share a connection otherwise.
        return grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
    several = channel_target(target)
    return grpc.aio.insecure_channel(several, channel_options(several, MAX_MESSAGE_BYTES, None))


if __name__ == "__main__":
    asyncio.run(_obey(sys.argv[1], read_requests(Path(sys.argv[2]))))
