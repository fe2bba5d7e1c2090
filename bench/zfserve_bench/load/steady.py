"""Calls of several kinds at steady rates, whatever becomes of them: how a rolling restart and a soak are looked at.

`python -m zfserve_bench.load.steady ADDRESS FOLDER PLAN`, started by `SteadyLoad`, calls until its standard input
ends, as a client of zfserve does: with its balancing, its retries and one connection to each server. Every call leaves
a line.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve.channel import channel_options, channel_target
from zfserve_protos.limits import MAX_MESSAGE_BYTES
from zfserve_protos.methods import CLASSIFY, DESCRIBE_MODEL, PROJECT

from zfserve_bench.load.closed_loop import Call, read_requests, write_requests

CALL_TIMEOUT_S = 30.0
MOST_UNDER_WAY = 512
"""Calls at a time; those that would be more are not made, and count as failed."""

CANCEL_AFTER_S = 0.005
"""Enough to reach the server, and less than an answer takes."""

NOT_MADE = "NOT_MADE"


class Kind(StrEnum):
    """What a call asks for."""

    RAW = "classify raw"
    JPEG = "classify jpeg"
    PROJECT = "project"
    DESCRIBE = "describe"
    BAD_INPUT = "bad input"
    CANCELLED_CLASSIFY = "cancelled classify"
    CANCELLED_PROJECT = "cancelled project"
    HEALTH_WATCH = "health watch"


EXPECTED: Mapping[str, set[str]] = {
    Kind.BAD_INPUT: {"INVALID_ARGUMENT"},
    Kind.CANCELLED_CLASSIFY: {"CANCELLED", "OK"},  # the answer may be there first
    Kind.CANCELLED_PROJECT: {"CANCELLED"},
}
"""How a call of that kind may end; the others OK."""


class Record(NamedTuple):
    """One call.

    Attributes:
        began_s: by `time.monotonic`, which all processes of a machine share.
        seconds: until it ended.
        status: name of the gRPC status, or `NOT_MADE`.
    """

    kind: str
    began_s: float
    seconds: float
    status: str

    @property
    def as_expected(self) -> bool:
        return self.status in EXPECTED.get(self.kind, {"OK"})


class SteadyLoad:
    """The process, as seen by the benchmark that started it. Leaving the block ends it.

    Args:
        requests: serialised, by kind, sent in turn.
        rates: calls per second of each kind.
        folder: for the files between the two processes.
    """

    def __init__(
        self, address: str, requests: Mapping[Kind, Sequence[bytes]], rates: Mapping[Kind, float], folder: Path
    ) -> None:
        self._records = folder / "records"
        self._records.touch()
        for kind, messages in requests.items():
            write_requests(folder / kind, messages)
        command = [sys.executable, "-m", "zfserve_bench.load.steady", address, str(folder), json.dumps(rates)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)

    def records(self) -> list[Record]:
        """Of the calls that have ended so far."""
        return list(read_records(self._records.read_text()))

    def finish(self) -> list[Record]:
        """Make no more calls, wait for those under way, and give all records.

        Raises:
            RuntimeError: the generator died.
        """
        assert self._process.stdin is not None, "opened above"
        self._process.stdin.close()
        if status := self._process.wait(2 * CALL_TIMEOUT_S):
            raise RuntimeError(f"the load generator ended with status {status}")
        return self.records()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()


def read_records(text: str) -> Iterator[Record]:
    """A last line that is not whole yet is left out."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            kind, began_s, seconds, status = line.rstrip("\n").split(",")
            yield Record(kind, float(began_s), float(seconds), status)


def tally(records: Sequence[Record]) -> str:
    """How many calls of each kind ended how."""
    counts: dict[tuple[str, str], int] = {}
    for one in records:
        counts[one.kind, one.status] = counts.get((one.kind, one.status), 0) + 1
    return ", ".join(f"{kind} {status} {count}" for (kind, status), count in sorted(counts.items()))


class Caller:
    """Makes one call of any kind, and says how it ended. Every method returns the name of a status, or raises."""

    def __init__(self, address: str, requests: Mapping[Kind, Sequence[bytes]]) -> None:
        self._target = channel_target(address)
        self._options = channel_options(self._target, MAX_MESSAGE_BYTES, None)
        self._channel = grpc.aio.insecure_channel(self._target, self._options)
        self._classify: Call = self._channel.unary_unary(CLASSIFY)
        self._project: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(PROJECT)
        self._describe: Call = self._channel.unary_unary(DESCRIBE_MODEL)
        self._requests = {kind: cycle(messages) for kind, messages in requests.items()}

    def ways(self) -> dict[Kind, Callable[[], Awaitable[str]]]:
        return {
            Kind.RAW: lambda: self._unary(Kind.RAW),
            Kind.JPEG: lambda: self._unary(Kind.JPEG),
            Kind.BAD_INPUT: lambda: self._unary(Kind.BAD_INPUT),
            Kind.PROJECT: self._project_all,
            Kind.DESCRIBE: self._describe_model,
            Kind.CANCELLED_CLASSIFY: self._cancel_classify,
            Kind.CANCELLED_PROJECT: self._cancel_project,
            Kind.HEALTH_WATCH: self._watch_health,
        }

    async def _unary(self, kind: Kind) -> str:
        await self._classify(next(self._requests[kind]), timeout=CALL_TIMEOUT_S)
        return "OK"

    async def _describe_model(self) -> str:
        await self._describe(b"", timeout=CALL_TIMEOUT_S)
        return "OK"

    async def _project_all(self) -> str:
        async for _ in self._project(next(self._requests[Kind.PROJECT]), timeout=CALL_TIMEOUT_S):
            pass
        return "OK"

    async def _cancel_classify(self) -> str:
        """While it waits for the engine, most likely."""
        call = self._classify(next(self._requests[Kind.JPEG]), timeout=CALL_TIMEOUT_S)
        await asyncio.sleep(CANCEL_AFTER_S)
        call.cancel()
        return str((await call.code()).name)

    async def _cancel_project(self) -> str:
        """After the first answer."""
        call = self._project(next(self._requests[Kind.PROJECT]), timeout=CALL_TIMEOUT_S)
        await call.read()
        call.cancel()
        return str((await call.code()).name)

    async def _watch_health(self) -> str:
        """On a connection of its own, as a load balancer that comes and goes."""
        options = [*self._options, ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._target, options) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            told = await watching.read()
            watching.cancel()
        return "OK" if told.status == health_pb2.HealthCheckResponse.SERVING else "NOT_SERVING"


async def keep_calling(
    ways: Mapping[Kind, Callable[[], Awaitable[str]]],
    rates: Mapping[Kind, float],
    write: Callable[[Record], object],
    stop: asyncio.Event,
) -> None:
    """Call until `stop`, then wait for what is under way. A late call delays none of the next."""
    loop = asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()

    async def record(kind: Kind) -> None:
        began_s = time.monotonic()
        status = NOT_MADE
        if len(under_way) <= MOST_UNDER_WAY:
            try:
                status = await ways[kind]()
            except grpc.aio.AioRpcError as error:
                status = error.code().name
        write(Record(kind, began_s, time.monotonic() - began_s, status))

    async def keep(kind: Kind, per_s: float) -> None:
        due_s = loop.time()
        while True:
            due_s += 1 / per_s
            await asyncio.sleep(due_s - loop.time())
            call = asyncio.create_task(record(kind))
            under_way.add(call)
            call.add_done_callback(under_way.discard)

    streams = [asyncio.create_task(keep(kind, per_s)) for kind, per_s in rates.items()]
    await stop.wait()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*under_way)


async def _main(address: str, folder: Path, rates: Mapping[Kind, float]) -> None:
    stop = asyncio.Event()
    requests = {kind: read_requests(folder / kind) for kind in Kind if (folder / kind).exists()}
    with (folder / "records").open("w", buffering=1, encoding="utf-8") as file:

        def write(record: Record) -> None:
            file.write(f"{record.kind},{record.began_s:.6f},{record.seconds:.6f},{record.status}\n")

        calling = asyncio.create_task(keep_calling(Caller(address, requests).ways(), rates, write, stop))
        await asyncio.to_thread(sys.stdin.read)
        stop.set()
        await calling


if __name__ == "__main__":
    asyncio.run(
        _main(sys.argv[1], Path(sys.argv[2]), {Kind(name): rate for name, rate in json.loads(sys.argv[3]).items()})
    )
