"""Clients that cancel, vanish or read slowly do not affect others, and the server frees what they held."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from fakes.serving import FakeEngine, FakeWorker, Running, classify_request, projection_is, raw_image, running_server
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.grpc.options import server_options
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.batching.queue_entry import QueueEntry

PROJECT = pb.ProjectRequest(image=raw_image(1), layer="conv1", strongest=6)

CALLER = """
import sys, grpc
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
channel = grpc.insecure_channel(sys.argv[1])
image = pb.Image(raw=pb.RawPixels(width=8, height=8, data=bytes(192)))
classify = VisionServiceStub(channel).Classify.future(pb.ClassifyRequest(image=image))
for message in VisionServiceStub(channel).Project(pb.ProjectRequest(image=image, layer="conv1", strongest=6)):
    print(message.rank, flush=True)
"""


async def test_a_client_that_is_killed_leaves_nothing_behind(
    paired_server: Running, engine: FakeEngine, worker: FakeWorker
) -> None:
    engine.open.clear()
    worker.hangs_after = 1
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALLER, f"127.0.0.1:{paired_server.ports.grpc}", stdout=asyncio.subprocess.PIPE
    )
    assert client.stdout is not None
    assert await client.stdout.readline() == b"0\n"
    await engine.begun()
    neighbour = asyncio.ensure_future(paired_server.vision.Classify(classify_request(3)))
    os.kill(client.pid, signal.SIGKILL)
    await client.wait()
    await worker.cancelled.wait()
    engine.open.set()
    assert (await neighbour).features[0] == 3


def entries() -> list[QueueEntry]:
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is QueueEntry]


async def test_calls_that_are_cancelled_all_the_time_hold_no_memory(engine: FakeEngine) -> None:
    before = entries()  # an earlier test with a hung engine may have left entries
    async with running_server(engine) as server:
        engine.open.clear()
        first = asyncio.ensure_future(server.vision.Classify(classify_request(0)))
        await engine.begun()
        for _ in range(20):
            calls = [server.vision.Classify(classify_request(identity)) for identity in range(1, 11)]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*map(asyncio.ensure_future, calls), return_exceptions=True)
        engine.open.set()
        await first
        assert (await server.vision.Classify(classify_request(7))).features[0] == 7
        del first, calls, call
    assert [entry for entry in entries() if entry not in before] == []


COPIES = 4
"""The number of copies of each picture. Together they exceed by far what gRPC and the kernel buffer."""


@dataclass
class LargeWorker(FakeWorker):
    """Sends `COPIES` copies of each picture, 4 MiB each, and notes the rank of each copy in `made`."""

    made: list[int] = field(default_factory=list)

    async def Project(  # noqa: N802
        self, request: worker_pb2.ProjectRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[worker_pb2.ProjectResponse]:
        async for answer in super().Project(request, context):
            answer.projection.png = bytes(4 << 20)
            for _ in range(COPIES):
                self.made.append(answer.projection.rank)
                yield answer


async def test_a_client_that_reads_slowly_delays_only_itself_and_few_answers_are_buffered(
    engine: FakeEngine, address: str
) -> None:
    worker = LargeWorker()
    options = [("grpc.max_receive_message_length", 8 << 20), ("grpc.use_local_subchannel_pool", 1)]
    async with (
        worker.listening(address),
        running_server(engine, worker=True, worker_address=address) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}", options) as other,
    ):
        await projection_is(server, serving=True)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}", options) as lazy:
            slow = VisionServiceStub(lazy).Project(PROJECT)
            first = await slow.read()
            assert isinstance(first, pb.ProjectResponse)
            assert first.rank == 0
            quick = pb.ProjectRequest(image=raw_image(2), layer="conv1", strongest=1)
            for _ in range(5):
                answers = [answer async for answer in VisionServiceStub(other).Project(quick)]
                assert [answer.rank for answer in answers] == [0] * COPIES
                assert (await VisionServiceStub(other).Classify(classify_request(4))).features[0] == 4
            made = len(worker.made) - 5 * COPIES
            assert 1 <= made < 6 * COPIES, "the worker must not make what nobody reads"
            slow.cancel()
        assert len([answer async for answer in VisionServiceStub(other).Project(PROJECT)]) == 6 * COPIES


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Yields the port of a proxy to `port` and an event. Once the event is set, the proxy silently drops all data."""
    cut, tasks = asyncio.Event(), list[asyncio.Task[None]]()

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            if cut.is_set():
                continue
            target.write(data)
            await target.drain()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        tasks.extend([asyncio.create_task(carry(reader, far_writer)), asyncio.create_task(carry(far_reader, writer))])
        await asyncio.wait(tasks)
        writer.close()
        far_writer.close()

    proxy = await asyncio.start_server(connect, "127.0.0.1", 0)
    yield proxy.sockets[0].getsockname()[1], cut
    for task in tasks:
        task.cancel()
    proxy.close()


async def test_keepalive_notices_a_client_that_vanishes_silently() -> None:
    """The keepalive times of `server_options` are shortened here, so the test first checks that they are set there."""
    began, gone = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            gone.set()
            raise
        return request

    usual = dict(server_options())
    assert {"grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms"} <= usual.keys()
    quick = {"grpc.keepalive_time_ms": 200, "grpc.keepalive_timeout_ms": 200, "grpc.http2.ping_timeout_ms": 200}
    server = InterceptingServer(Metrics(), list((usual | quick).items()))
    handler: Any = grpc.unary_unary_rpc_method_handler(wait)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.Waiting", {"Wait": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with proxy_to(port) as (proxy_port, cut), grpc.aio.insecure_channel(f"127.0.0.1:{proxy_port}") as channel:
        ask: Any = channel.unary_unary("/t.Waiting/Wait")
        call = asyncio.ensure_future(ask(b"request"))
        await began.wait()
        cut.set()
        await gone.wait()
        call.cancel()
    await server.stop(None)
