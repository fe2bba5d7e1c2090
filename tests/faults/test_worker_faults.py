"""A worker that is killed, stopped, or answers garbage in the middle of a stream never affects classification."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.serving import (
    FINGERPRINT,
    FakeEngine,
    FakeWorker,
    classify_request,
    projection_is,
    raw_image,
    running_server,
)
from zfserve_protos.methods import WORKER_SERVICE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.errors import EngineFailed, ServiceError, WorkerUnavailable
from zfserve_runtime.grpc.health import SERVER, Health, add_health_and_reflection
from zfserve_runtime.grpc.status import from_call_error
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.worker.probe import probe_worker
from zfserve_server.worker.supervisor import ProbePolicy, RestartPolicy, Supervisor

TESTS = Path(__file__).parent.parent
REQUEST = pb.ProjectRequest(image=raw_image(1), layer="conv1", strongest=3)


async def outcome(call: "grpc.aio.UnaryStreamCall[Any, pb.ProjectResponse]") -> ServiceError | None:
    """Reads a stream of projections to its end and returns its error, or None."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_call_error(error)
    return None


async def first_rank(call: "grpc.aio.UnaryStreamCall[Any, pb.ProjectResponse]") -> int:
    answer = await call.read()
    assert isinstance(answer, pb.ProjectResponse)
    return answer.rank


@asynccontextmanager
async def supervised(address: str, folder: Path) -> AsyncIterator[asyncio.Event]:
    """Runs a worker process under a supervisor with short timeouts. Yields an event that each answered probe sets."""
    answered = asyncio.Event()

    async def probe(timeout_s: float) -> bool:
        alive = await probe_worker(address, timeout_s)
        if alive:
            answered.set()
        return alive

    command = [sys.executable, str(TESTS / "fakes" / "worker_process.py"), address, str(folder), FINGERPRINT]
    probing = ProbePolicy(probe, timeout_s=2.0, interval_s=0.05)
    supervisor = Supervisor(command, Metrics(), restart=RestartPolicy(first_delay_s=0.01), probing=probing)
    task = asyncio.create_task(supervisor.run())
    try:
        yield answered
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_worker_process_that_dies_or_stops_is_replaced(
    engine: FakeEngine, address: str, tmp_path: Path
) -> None:
    async with (
        supervised(address, tmp_path) as answered,
        running_server(engine, worker=True, worker_address=address) as server,
    ):
        processes = set()
        for fault in (signal.SIGSTOP, signal.SIGKILL):
            await projection_is(server, serving=True)
            answered.clear()
            await answered.wait()
            process = int((tmp_path / "pid").read_text())
            processes.add(process)
            # The watch begins before the fault: on a busy machine the fault may be over before a later watch begins.
            down = asyncio.create_task(projection_is(server, serving=False))
            call = server.vision.Project(REQUEST)
            assert await first_rank(call) == 0
            os.kill(process, fault)
            assert (await server.vision.Classify(classify_request(5))).features[0] == 5
            assert isinstance(await outcome(call), WorkerUnavailable)
            await down
        await projection_is(server, serving=True)
        assert int((tmp_path / "pid").read_text()) not in processes
        (tmp_path / "go").touch()
        assert await outcome(server.vision.Project(REQUEST)) is None


@asynccontextmanager
async def raw_worker(address: str, messages: list[bytes]) -> AsyncIterator[None]:
    """Runs a worker that pairs like any other and answers each Project call with these bytes."""

    async def describe(request: bytes, context: object) -> bytes:
        return worker_pb2.DescribeResponse(models=[pb.ModelIdentity(fingerprint=FINGERPRINT)]).SerializeToString()

    async def project(request: bytes, context: object) -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    server, health = grpc.aio.server(), Health(SERVER, WORKER_SERVICE)
    handlers: dict[str, Any] = {
        "Describe": grpc.unary_unary_rpc_method_handler(describe),
        "Project": grpc.unary_stream_rpc_method_handler(project),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("zfserve.worker.v1.WorkerService", handlers)])
    add_health_and_reflection(server, health)
    server.add_insecure_port(address)
    await server.start()
    health.serving(SERVER, WORKER_SERVICE)
    try:
        yield
    finally:
        await server.stop(None)


def answer(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "map": 1,
        "activation": 1.0,
        "box": pb.Box(left=2, top=0, right=4, bottom=8),
        "png": b"png",
        "rank": 0,
        "total": 3,
    }
    projection = pb.ProjectResponse(**fields | changes)
    return worker_pb2.ProjectResponse(projection=projection).SerializeToString()


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xff\xff\xff\xff", id="no message"),
        pytest.param(b"", id="empty"),
        pytest.param(answer(map=6), id="a map that the layer does not have"),
        pytest.param(answer(box=pb.Box(left=2, top=0, right=9, bottom=8)), id="a box beyond the photo"),
        pytest.param(answer(box=pb.Box(left=4, top=0, right=4, bottom=8)), id="an empty box"),
        pytest.param(answer(rank=3), id="a rank beyond the last"),
        pytest.param(answer(activation=float("nan")), id="no activation"),
        pytest.param(answer(png=None), id="no picture"),
    ],
)
async def test_garbage_ends_its_own_stream_only(engine: FakeEngine, address: str, garbage: bytes) -> None:
    messages = [answer(), garbage, answer()]
    async with raw_worker(address, messages), running_server(engine, worker=True, worker_address=address) as server:
        await projection_is(server, serving=True)
        call = server.vision.Project(REQUEST)
        assert await first_rank(call) == 0
        assert type(await outcome(call)) is EngineFailed
        messages[1:] = []
        assert await outcome(server.vision.Project(REQUEST)) is None, "the next stream is answered"
        assert (await server.vision.Classify(classify_request(5))).features[0] == 5


async def test_a_peer_that_speaks_no_grpc_is_no_worker_and_a_real_worker_is_found_after_it(
    engine: FakeEngine, worker: FakeWorker, address: str
) -> None:
    connected = asyncio.Event()

    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno")
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_unix_server(speak_http, address.removeprefix("unix:"))
    async with running_server(engine, worker=True, worker_address=address) as server:
        await connected.wait()
        assert isinstance(await outcome(server.vision.Project(REQUEST)), WorkerUnavailable)
        stranger.close()
        await stranger.wait_closed()
        async with worker.listening(address):
            await projection_is(server, serving=True)
            assert await outcome(server.vision.Project(REQUEST)) is None
