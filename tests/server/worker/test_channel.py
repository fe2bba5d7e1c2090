"""Tests the channel to a worker behind mutual TLS while its TLS files are replaced."""

import asyncio
import shutil
from pathlib import Path

import grpc
from fakes.callers import TLS
from fakes.serving import FINGERPRINT, FakeWorker
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.access.tls import ClientTlsFiles, TlsFiles
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.worker.channel import WorkerChannel
from zfserve_server.worker.client import WorkerClient, WorkerIntervals

WORKER_FILES = TlsFiles(TLS / "server.pem", TLS / "server.key", TLS / "ca.pem")


def files_in(folder: Path) -> ClientTlsFiles:
    for name in ("ca.pem", "client.pem", "client.key"):
        shutil.copy(TLS / name, folder / name)
    return ClientTlsFiles(folder / "ca.pem", folder / "client.pem", folder / "client.key")


async def test_the_worker_is_found_once_the_files_are_replaced(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    shutil.copy(TLS / "client.pem", files.ca)  # an authority that has signed neither certificate
    changes: asyncio.Queue[bool] = asyncio.Queue()
    async with FakeWorker().listening("localhost:0", WORKER_FILES) as port:
        channel = WorkerChannel(f"localhost:{port}", files, grace_s=60)
        client = WorkerClient(
            channel.current,
            Metrics(),
            60.0,
            changes.put_nowait,
            renew_channel=channel.renew,
            intervals=WorkerIntervals(renew_s=0.2),
        )
        watching = asyncio.create_task(client.watch())
        while (state := channel.current.get_state()) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            await channel.current.wait_for_state_change(state)
        assert changes.empty()
        shutil.copy(TLS / "ca.pem", files.ca)
        assert await changes.get()
        watching.cancel()
        await channel.close()


async def test_calls_in_flight_outlive_the_channel_they_began_on(tmp_path: Path) -> None:
    files, worker, changes = files_in(tmp_path), FakeWorker(), asyncio.Queue[bool]()
    request = worker_pb2.ProjectRequest(fingerprint=FINGERPRINT, layer="conv1", strongest=3)
    async with worker.listening("localhost:0", WORKER_FILES) as port:
        channel = WorkerChannel(f"localhost:{port}", files, grace_s=60)
        client = WorkerClient(channel.current, Metrics(), 60.0, changes.put_nowait, renew_channel=channel.renew)
        watching = asyncio.create_task(client.watch())
        assert await changes.get()
        projections = client.project(request, Deadline())
        assert (await anext(projections)).rank == 0
        watching.cancel()
        assert channel.renew(False) is None, "no file has changed"
        before = channel.current
        shutil.copy(TLS / "server.pem", tmp_path / "client.pem")
        shutil.copy(TLS / "server.key", tmp_path / "client.key")
        assert channel.renew(False) is channel.current is not before
        assert [answer.rank async for answer in projections] == [1, 2]
        await channel.close()
