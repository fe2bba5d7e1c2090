"""A collector receives the traces of a server with a fake engine; log lines carry the request's id."""

import asyncio
import io
import json
import logging
import socket
import threading
from collections.abc import Iterator

import grpc
import pytest
from fakes.collector import Collector
from fakes.serving import FakeEngine, FakeWorker, classify_request, projection_is, running_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from zfserve_engines.images.input_image import ImageLimits, InputImage, decode_image
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import InputSpec
from zfserve_runtime.telemetry.logs import configure_logging
from zfserve_server.requests import image_decoder

CLASSIFY = "zfserve.v1.VisionService/Classify"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def endpoint(collector: Collector) -> Iterator[str]:
    with collector.listening() as endpoint:
        yield endpoint


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Holds all log lines, as JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("json", logging.DEBUG, stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def png() -> pb.Image:
    file = io.BytesIO()
    Image.new("RGB", (3, 5)).save(file, "PNG")
    return pb.Image(encoded=file.getvalue())


async def test_one_trace_from_the_callers_span_to_the_engine(
    engine: FakeEngine, collector: Collector, endpoint: str
) -> None:
    async with running_server(engine, otlp_endpoint=endpoint) as server:
        metadata = (*TRACED, ("x-request-id", "r1"))
        await server.vision.Classify(pb.ClassifyRequest(image=png()), metadata=metadata)
        # Probes are not traced.
        await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(), metadata=TRACED)

    call, batch = collector.only(CLASSIFY), collector.only("batch")
    assert (call.trace, call.parent, call.kind, call.service) == (TRACE, CALLER, "SERVER", "zfserve-server")
    about = {"zfserve.request.id": "r1", "zfserve.model.name": "fake", "zfserve.model.version": "7"}
    assert call.attributes == about | {
        "rpc.system.name": "grpc",
        "rpc.method": CLASSIFY,
        "rpc.response.status_code": "OK",
    }
    assert collector.children(call) == ["decode", "queue", "inference"]
    inference = collector.only("inference")
    assert inference.attributes == about | {"zfserve.batch.size": 1}
    assert inference.links == {batch.id}
    assert call.began_ns <= inference.began_ns <= inference.ended_ns <= call.ended_ns + 10**9

    assert batch.trace != TRACE, "a batch serves many traces and belongs to none"
    assert batch.parent == ""
    assert batch.links == {call.id}
    assert batch.attributes == {"zfserve.model.name": "fake", "zfserve.model.version": "7", "zfserve.batch.size": 1}
    assert collector.children(batch) == ["engine"]
    assert {span.name for span in collector.spans} == {CLASSIFY, "decode", "queue", "inference", "batch", "engine"}
    assert not any(span.failed for span in collector.spans)


async def test_a_batch_is_linked_with_every_traced_call_in_it(
    engine: FakeEngine, collector: Collector, endpoint: str
) -> None:
    async with running_server(engine, otlp_endpoint=endpoint, trace_ratio=0) as server:
        engine.open.clear()
        first = asyncio.ensure_future(server.vision.Classify(classify_request(0)))
        await engine.begun()
        metadata: tuple[tuple[tuple[str, str], ...], ...] = (TRACED, TRACED, ())
        mates = [asyncio.ensure_future(server.vision.Classify(classify_request(9), metadata=each)) for each in metadata]
        await server.vision.DescribeModel(pb.DescribeModelRequest())  # its span arrives after theirs
        engine.open.set()
        await asyncio.gather(first, *mates)

    batch = collector.only("batch")
    assert batch.attributes["zfserve.batch.size"] == 3
    assert batch.links == {call.id for call in collector.named(CLASSIFY)}
    assert len(batch.links) == 2, "one call was not traced, and the first was in a batch of its own"
    assert {span.links for span in collector.named("inference")} == {frozenset({batch.id})}


@pytest.mark.parametrize(
    ("traceparent", "traced"),
    [
        (f"00-{TRACE}-{CALLER}-00", False),  # the caller decided not to trace
        (f"00-{TRACE}-{'0' * 16}-01", True),
        ("what is this", True),
    ],
)
async def test_a_broken_traceparent_is_ignored_and_a_callers_decision_not_to_trace_holds(
    engine: FakeEngine, collector: Collector, endpoint: str, traceparent: str, traced: bool
) -> None:
    async with running_server(engine, otlp_endpoint=endpoint) as server:
        await server.vision.Classify(classify_request(1), metadata=(("traceparent", traceparent),))
    assert [call.parent for call in collector.named(CLASSIFY)] == ([""] if traced else [])
    assert all(span.trace != TRACE for span in collector.spans)


async def test_failures_are_marked_by_their_kind_alone(engine: FakeEngine, collector: Collector, endpoint: str) -> None:
    engine.failures.append(RuntimeError("cuda error at /secret/path"))
    async with running_server(engine, otlp_endpoint=endpoint) as server:
        for image in (classify_request(1).image, pb.Image(encoded=b"no image")):
            with pytest.raises(grpc.aio.AioRpcError):
                await server.vision.Classify(pb.ClassifyRequest(image=image))
    failed = {span.name: span.attributes["error.type"] for span in collector.spans if span.failed}
    assert failed == {
        CLASSIFY: "INTERNAL",
        "decode": "IMAGE_UNDECODABLE",
        "inference": "EngineFailed",
        "batch": "EngineFailed",
        "engine": "EngineFailed",
    }
    statuses = {call.attributes["rpc.response.status_code"]: call.failed for call in collector.named(CLASSIFY)}
    assert statuses == {"INTERNAL": True, "INVALID_ARGUMENT": False}, "the caller's faults are not the server's"
    assert "secret" not in str(collector.spans)


async def test_the_call_to_the_worker_is_part_of_the_trace(
    engine: FakeEngine, collector: Collector, endpoint: str, tmp_path: object
) -> None:
    address = f"unix:{tmp_path}/worker.sock"
    worker = FakeWorker()
    async with (
        worker.listening(address),
        running_server(engine, worker=True, worker_address=address, otlp_endpoint=endpoint) as server,
    ):
        await projection_is(server, serving=True)
        request = pb.ProjectRequest(image=png(), layer="conv1", strongest=2)
        assert len([answer async for answer in server.vision.Project(request, metadata=TRACED)]) == 2
        await server.vision.Explain(pb.ExplainRequest(image=png()), metadata=TRACED)
    parents = []
    for method in ("Project", "Explain"):
        asked = collector.only(f"zfserve.worker.v1.WorkerService/{method}")
        call = collector.only(f"zfserve.v1.VisionService/{method}")
        assert (asked.kind, asked.parent) == ("CLIENT", call.id)
        assert asked.attributes["rpc.response.status_code"] == "OK"
        parents.append(f"00-{TRACE}-{asked.id}-01")
    assert worker.traceparents == parents
    inferences = [span for span in collector.named("inference") if span.parent == call.id]
    assert len(inferences) == 1, "the engine's own probability of an explanation is part of its trace"


async def test_every_line_of_a_call_carries_its_id_even_from_the_decoding_thread(
    engine: FakeEngine, endpoint: str, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_aloud(data: bytes, spec: InputSpec, limits: ImageLimits) -> InputImage:
        assert threading.current_thread() is not threading.main_thread()
        logging.getLogger("decoder").info("decoding")
        return decode_image(data, spec, limits)

    monkeypatch.setattr(image_decoder, "decode_image", decode_aloud)
    async with running_server(engine, otlp_endpoint=endpoint) as server:
        metadata = (*TRACED, ("x-request-id", "r1"))
        await server.vision.Classify(pb.ClassifyRequest(image=png()), metadata=metadata)
        engine.failures.append(RuntimeError("broken"))
        with pytest.raises(grpc.aio.AioRpcError):
            await server.vision.Classify(classify_request(1), metadata=(("x-request-id", "r2"),))
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    during = [line for line in lines if line["logger"] == "decoder" or line["message"] == "call"]
    assert [line["message"] for line in during] == ["decoding", "call", "call"]
    assert {(line["request_id"], line.get("trace_id") == TRACE) for line in during} == {("r1", True), ("r2", False)}
    (failed,) = [line for line in lines if line["message"] == "the engine failed"]
    assert failed["request_ids"] == ["r2"], "an engine's thread works for many calls"


async def test_a_collector_that_hangs_delays_neither_requests_nor_the_shutdown(engine: FakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with running_server(engine, otlp_endpoint=endpoint) as server:
            answer = await server.vision.Classify(classify_request(5))
            assert answer.features[0] == 5
        assert server.ended.exception() is None
