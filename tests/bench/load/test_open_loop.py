"""Tests open loops: arrivals, records, and calls of every kind against a server with a fake engine and worker."""

import asyncio
import io
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from fakes.serving import FakeEngine, FakeWorker, projection_is, raw_image, running_server
from PIL import Image
from zfserve_bench.load.open_loop import run_streams
from zfserve_bench.load.protocol import MAX_IN_FLIGHT, NOT_SENT, Call, Kind, OpenLoop, Stream
from zfserve_bench.load.senders import Send, connect
from zfserve_protos.v1 import zfserve_pb2 as pb


def one_stream(calls_per_s: float, send: Send) -> tuple[OpenLoop, dict[Stream, Send]]:
    """Returns an order with one stream, and the function that makes its calls."""
    order = OpenLoop.steady({Kind.RAW: calls_per_s})
    return order, {order.streams[0]: send}


async def test_calls_begin_while_earlier_calls_run() -> None:
    release, stop = asyncio.Event(), asyncio.Event()
    calls: list[Call] = []
    held = 0

    async def hold() -> str:
        nonlocal held
        held += 1
        await release.wait()
        return "OK"

    def record(call: Call) -> None:
        calls.append(call)
        if call.status == NOT_SENT:
            stop.set()

    order, senders = one_stream(1e5, hold)
    running = asyncio.create_task(run_streams(senders, order, record, stop))
    await stop.wait()
    assert held == MAX_IN_FLIGHT, "further calls are recorded and not sent"
    assert not running.done(), "it waits for the calls in flight"
    release.set()
    await running
    assert [call.status for call in calls].count("OK") == MAX_IN_FLIGHT


async def test_a_failed_call_leaves_its_status() -> None:
    stop = asyncio.Event()
    calls: list[Call] = []

    async def fail() -> str:
        stop.set()
        metadata = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata)

    order, senders = one_stream(1e3, fail)
    await run_streams(senders, order, calls.append, stop)
    assert {call.status for call in calls} == {"UNAVAILABLE"}


@pytest.mark.parametrize("random_arrivals", [False, True])
async def test_calls_begin_at_the_rate_of_their_stream(random_arrivals: bool) -> None:
    stop = asyncio.Event()
    calls: list[Call] = []

    async def send() -> str:
        return "OK"

    order, senders = one_stream(200.0, send)
    order = replace(order, random_arrivals=random_arrivals)
    running = asyncio.create_task(run_streams(senders, order, calls.append, stop))
    await asyncio.sleep(1.0)
    stop.set()
    await running
    assert len(calls) == pytest.approx(200, abs=80)
    intervals = [later.began_s - call.began_s for call, later in pairwise(calls)]
    # Exponential intervals have a median deviation of 2.4 ms here. The outliers of a busy machine do not count.
    middle = statistics.median(intervals)
    deviation = statistics.median(abs(interval - middle) for interval in intervals)
    assert (deviation > 0.001) is random_arrivals


async def test_every_kind_of_call_ends_as_it_should(tmp_path: Path) -> None:
    engine, worker, address = FakeEngine(), FakeWorker(), f"unix:{tmp_path}/worker.sock"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    photo = pb.Image(encoded=file.getvalue())
    requests = {
        Kind.RAW: [pb.ClassifyRequest(image=raw_image(1)).SerializeToString()],
        Kind.JPEG: [pb.ClassifyRequest(image=photo).SerializeToString()],
        Kind.PROJECT: [pb.ProjectRequest(image=photo, layer="conv1", strongest=2).SerializeToString()],
        Kind.BAD_INPUT: [
            pb.ClassifyRequest(image=pb.Image(encoded=file.getvalue()[:100])).SerializeToString(),
        ],
    }
    order = OpenLoop.steady(dict.fromkeys(Kind, 1.0))
    ended = {}
    async with worker.listening(address), running_server(engine, worker=True, worker_address=address) as server:
        await projection_is(server, True)
        for stream in order.streams:
            if stream.kind is Kind.CANCELLED_PROJECT:
                worker.hangs_after = 1
            if stream.kind is Kind.CANCELLED_CLASSIFY:
                engine.open.clear()
            async with connect(f"127.0.0.1:{server.ports.grpc}", requests, stream, order) as send:
                try:
                    ended[stream.kind] = await send()
                except grpc.aio.AioRpcError as error:
                    ended[stream.kind] = error.code().name
            engine.open.set()
        await asyncio.wait_for(worker.cancelled.wait(), 60)
    assert ended == dict.fromkeys(Kind, "OK") | {
        Kind.BAD_INPUT: "INVALID_ARGUMENT",
        Kind.CANCELLED_CLASSIFY: "CANCELLED",
        Kind.CANCELLED_PROJECT: "CANCELLED",
    }
