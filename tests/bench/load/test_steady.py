"""The steady load: its pace, its records, and every kind of call, against a server with a fake engine and worker."""

import asyncio
import io
from pathlib import Path

import grpc
import pytest
from fakes.serving import FakeEngine, FakeWorker, projection_is, raw_image, running_server
from PIL import Image
from zfserve_bench.load.steady import MOST_UNDER_WAY, NOT_MADE, Caller, Kind, Record, keep_calling, read_records
from zfserve_protos.v1 import zfserve_pb2 as pb


def test_a_line_that_is_not_whole_yet_is_no_record() -> None:
    text = "classify raw,10.5,0.25,OK\nproject,11,0.5,UNAVAILABLE\nproject,12,0."
    assert list(read_records(text)) == [
        Record(Kind.RAW, 10.5, 0.25, "OK"),
        Record(Kind.PROJECT, 11.0, 0.5, "UNAVAILABLE"),
    ]


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        (Kind.RAW, "OK", True),
        (Kind.RAW, "CANCELLED", False),
        (Kind.RAW, NOT_MADE, False),
        (Kind.BAD_INPUT, "INVALID_ARGUMENT", True),
        (Kind.BAD_INPUT, "OK", False),
        (Kind.BAD_INPUT, "INTERNAL", False),
        (Kind.CANCELLED_PROJECT, "CANCELLED", True),
    ],
)
def test_calls_that_should_fail_must(kind: Kind, status: str, expected: bool) -> None:
    assert Record(kind, 0, 0, status).as_expected is expected


async def test_calls_go_on_whatever_becomes_of_those_before() -> None:
    release, stop = asyncio.Event(), asyncio.Event()
    records: list[Record] = []
    held = 0

    async def hold() -> str:
        nonlocal held
        held += 1
        await release.wait()
        return "OK"

    def write(record: Record) -> None:
        records.append(record)
        if record.status == NOT_MADE:
            stop.set()

    calling = asyncio.create_task(keep_calling({Kind.RAW: hold}, {Kind.RAW: 1e5}, write, stop))
    await stop.wait()
    assert held == MOST_UNDER_WAY, "no more than so many are held; the next are told of"
    assert not calling.done(), "it waits for those under way"
    release.set()
    await calling
    assert [one.status for one in records].count("OK") == MOST_UNDER_WAY


async def test_a_failed_call_leaves_its_status() -> None:
    stop = asyncio.Event()
    records: list[Record] = []

    async def fail() -> str:
        stop.set()
        metadata = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata)

    await keep_calling({Kind.RAW: fail}, {Kind.RAW: 1e3}, records.append, stop)
    assert {one.status for one in records} == {"UNAVAILABLE"}


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
    async with worker.listening(address), running_server(engine, worker=True, worker_address=address) as server:
        await projection_is(server, True)
        ways = Caller(f"127.0.0.1:{server.ports.grpc}", requests).ways()
        assert set(ways) == set(Kind)
        ended = {}
        for kind, way in ways.items():
            if kind is Kind.CANCELLED_PROJECT:
                worker.hangs_after = 1
            if kind is Kind.CANCELLED_CLASSIFY:
                engine.open.clear()
            try:
                ended[kind] = await way()
            except grpc.aio.AioRpcError as error:
                ended[kind] = error.code().name
            engine.open.set()
        await asyncio.wait_for(worker.cancelled.wait(), 60)
    assert ended == dict.fromkeys(Kind, "OK") | {
        Kind.BAD_INPUT: "INVALID_ARGUMENT",
        Kind.CANCELLED_CLASSIFY: "CANCELLED",
        Kind.CANCELLED_PROJECT: "CANCELLED",
    }
