"""The client of the worker by itself; through the whole service it is tested in test_projection."""

import asyncio
from pathlib import Path

import grpc
import pytest
from fakes.serving import FINGERPRINT, FakeWorker
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.deadline import Deadline
from zfserve_runtime.errors import DeadlineExceeded, WorkerUnavailable
from zfserve_server.worker_client import WorkerClient


async def test_a_worker_that_never_answers_is_given_up_even_without_a_deadline(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/worker.sock"
    worker = FakeWorker(answers=0)
    changes: asyncio.Queue[bool] = asyncio.Queue()
    request = worker_pb2.ProjectRequest(fingerprint=FINGERPRINT, layer="conv1", strongest=1)
    async with worker.listening(address), grpc.aio.insecure_channel(address) as channel:
        client = WorkerClient(channel, FINGERPRINT, longest_s=0.1, on_change=changes.put_nowait)
        with pytest.raises(WorkerUnavailable):  # not paired yet
            await anext(client.project(request, Deadline()))
        watching = asyncio.create_task(client.watch())
        assert await changes.get()
        assert client.ready
        with pytest.raises(DeadlineExceeded):
            await anext(client.project(request, Deadline()))
        await worker.cancelled.wait()
        watching.cancel()
