"""A load that does not wait: calls begin at their time, whatever became of those before. A process of its own.

`python -m zfserve_bench.load.open_loop TARGET REQUESTS ORDER`, started by `offer`. It prints a line of JSON. Like
`closed_loop` it is kept lean, as it shares the cores with what it measures: requests are bytes, and so are answers.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import grpc
from zfserve import AsyncClient, ZfserveError
from zfserve.throttle import THROTTLED
from zfserve_cli.service_process import pin_to_cpus
from zfserve_protos.metadata import CLIENT_ID_KEY, PRIORITY_KEY, Priority
from zfserve_protos.methods import CLASSIFY
from zfserve_protos.v1 import zfserve_pb2 as pb

from zfserve_bench.load.closed_loop import LoadFailed, read_requests, write_requests

Classify: TypeAlias = Callable[[bytes], Awaitable[str]]
"""Sends a request; gives the name of the status that the call ended with."""

OK, REFUSED, LATE = "OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"
KEPT_BACK = "KEPT_BACK"
"""By the client itself: the service has seen nothing of it."""


@dataclass(frozen=True)
class Stream:
    """What one client sends; its calls arrive at random (a Poisson process)."""

    client: str
    priority: Priority
    calls_per_s: float


@dataclass(frozen=True)
class Offer:
    """What to send, and for how long.

    Attributes:
        own_client: by zfserve's client, which tries again and keeps back, as files of photos; else by a bare channel,
            which does neither.
    """

    streams: tuple[Stream, ...]
    seconds: float
    deadline_s: float
    own_client: bool = False


class Call(NamedTuple):
    """How one ended.

    Attributes:
        status: its name, or KEPT_BACK.
        began_s: since the first could begin.
        seconds: from then to its end.
    """

    client: str
    status: str
    began_s: float
    seconds: float


class Offered(NamedTuple):
    """What became of an offer.

    Attributes:
        seconds: in which calls began.
        cpu_s: CPU time that the generator itself took.
    """

    calls: list[Call]
    seconds: float
    cpu_s: float


def offer(
    target: str, requests: Sequence[bytes], folder: Path, offer: Offer, cpus: Collection[int] | None = None
) -> Offered:
    """Run the process to its end, on those CPUs only. Raises LoadFailed where it fails itself."""
    file = folder / "open-requests"
    write_requests(file, requests)
    command = [sys.executable, "-m", "zfserve_bench.load.open_loop", target, str(file), json.dumps(asdict(offer))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pin_to_cpus(process, cpus)
        said, _ = process.communicate()
    if process.returncode:
        raise LoadFailed(f"the load generator ended with status {process.returncode}")
    document = json.loads(said)
    return Offered([Call(*call) for call in document["calls"]], document["seconds"], document["cpu_s"])


async def send(target: str, requests: Sequence[bytes], offer: Offer) -> Offered:
    """Send all of it, and wait for what is under way at its end."""
    calls: list[Call] = []
    began = time.perf_counter()

    async def call(stream: Stream, classify: Classify, request: bytes) -> None:
        sent = time.perf_counter()
        status = await classify(request)
        calls.append(Call(stream.client, status, sent - began, time.perf_counter() - sent))

    async def run(stream: Stream) -> None:
        connect = _by_client if offer.own_client else _by_channel
        chance, due, turn = random.Random(stream.client), began, 0
        async with connect(target, stream, offer.deadline_s) as classify, asyncio.TaskGroup() as under_way:
            while (due := due + chance.expovariate(stream.calls_per_s)) < began + offer.seconds:
                await asyncio.sleep(due - time.perf_counter())
                under_way.create_task(call(stream, classify, requests[turn % len(requests)]))
                turn += 1

    async with asyncio.TaskGroup() as streams:
        for stream in offer.streams:
            streams.create_task(run(stream))
    return Offered(calls, offer.seconds, time.process_time())


@asynccontextmanager
async def _by_channel(target: str, stream: Stream, deadline_s: float) -> AsyncIterator[Classify]:
    metadata = ((CLIENT_ID_KEY, stream.client), (PRIORITY_KEY, stream.priority))
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY)

        async def classify(request: bytes) -> str:
            try:
                await call(request, timeout=deadline_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return OK

        yield classify


@asynccontextmanager
async def _by_client(target: str, stream: Stream, deadline_s: float) -> AsyncIterator[Classify]:
    async with AsyncClient(target, priority=stream.priority, client_id=stream.client) as client:

        async def classify(request: bytes) -> str:
            try:
                await client.classify(pb.ClassifyRequest.FromString(request).image.encoded, timeout_s=deadline_s)
            except ZfserveError as error:
                return KEPT_BACK if error.reason == THROTTLED else error.code.name
            return OK

        yield classify


if __name__ == "__main__":
    _document = json.loads(sys.argv[3])
    _streams = tuple(Stream(**stream) for stream in _document.pop("streams"))
    _offered = asyncio.run(send(sys.argv[1], read_requests(Path(sys.argv[2])), Offer(_streams, **_document)))
    sys.stdout.write(json.dumps(_offered._asdict()) + "\n")
