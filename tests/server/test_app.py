"""The whole server starts, opens its ports, serves metrics and reflection, and drains."""

import asyncio
import json
import os
import socket
import threading
from pathlib import Path

import grpc
import pytest
from fakes.serving import MANIFEST, FakeEngine, Running, classify_request, running_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from zfserve_protos.methods import VISION_SERVICE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_runtime.access.tls import TlsError
from zfserve_runtime.errors import EngineLost
from zfserve_server.grpc_server import Ports
from zfserve_server.server_process import write_ready_file


async def test_drain_answers_accepted_calls_and_refuses_new_ones(engine: FakeEngine) -> None:
    async with running_server(engine) as server:
        engine.open.clear()
        accepted = [asyncio.ensure_future(server.vision.Classify(classify_request(i))) for i in range(12)]
        await engine.begun()
        await in_flight(server, len(accepted))
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(service=VISION_SERVICE))
        statuses = aiter(watch)
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
        server.stop.ask("test")
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as late:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await VisionServiceStub(late).Classify(classify_request(99))
        # A call that connected before the port closed is CANCELLED by gRPC itself.
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert not server.ended.done()
        engine.open.set()
        answers = await asyncio.gather(*accepted)
        assert [answer.features[0] for answer in answers] == list(range(12))
        await server.ended


async def test_drain_gives_up_after_its_grace(engine: FakeEngine) -> None:
    async with running_server(engine, drain_grace=0.1) as server:
        engine.open.clear()
        stuck = asyncio.ensure_future(server.vision.Classify(classify_request(1)))
        await engine.begun()
        server.stop.ask("test")
        with pytest.raises(grpc.aio.AioRpcError):
            await stuck
        engine.open.set()
        await server.ended


@pytest.mark.parametrize("loss", [EngineLost("an illegal access"), SystemExit()])
async def test_a_lost_engine_ends_the_server(loss: BaseException) -> None:
    """All calls get UNAVAILABLE, health is NOT_SERVING, and `serve` raises EngineLost.

    A GPU loses its engine at an illegal memory access, for example.
    """
    engines = FakeEngine(), FakeEngine()
    async with running_server(*engines) as server:
        for engine in engines:
            engine.open.clear()
            engine.failures.append(loss)
        accepted = [asyncio.ensure_future(server.vision.Classify(classify_request(i))) for i in range(12)]
        await in_flight(server, len(accepted))
        health = health_pb2_grpc.HealthStub(server.channel)
        watches = [aiter(health.Watch(health_pb2.HealthCheckRequest(service=name))) for name in ("", VISION_SERVICE)]
        for statuses in watches:
            assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
        for engine in engines:
            engine.open.set()
        for statuses in watches:
            assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for outcome in await asyncio.gather(*accepted, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError)
            assert outcome.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait([server.ended])
        assert isinstance(server.ended.exception(), EngineLost)


async def in_flight(server: Running, count: int) -> None:
    """Waits until the server has `count` calls of Classify in flight."""
    await server.wait_for_metric(f'zfserve_in_flight{{method="/zfserve.v1.VisionService/Classify"}} {count}.0')


async def test_metrics_describe_requests_batches_and_the_model(server: Running) -> None:
    for identity in range(3):
        await server.vision.Classify(classify_request(identity))
    with pytest.raises(grpc.aio.AioRpcError):
        await server.vision.Classify(pb.ClassifyRequest())
    text = await server.scrape()
    for line in (
        'zfserve_requests_total{method="/zfserve.v1.VisionService/Classify",status="OK"} 3.0',
        'zfserve_requests_total{method="/zfserve.v1.VisionService/Classify",status="INVALID_ARGUMENT"} 1.0',
        "zfserve_decode_seconds_count 3.0",
        'zfserve_queue_seconds_count{model="fake",version="7"} 3.0',
        'zfserve_inference_seconds_count{model="fake",version="7"} 3.0',
        'zfserve_batch_size_sum{model="fake",version="7"} 3.0',
        'zfserve_queue_depth{model="fake",version="7"} 0.0',
        f'zfserve_model_info{{fingerprint="{MANIFEST.fingerprint}",model="fake",version="7"}} 1.0',
    ):
        assert line in text


async def test_reflection_lists_the_public_service(server: Running) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    async for answer in call:
        names = {service.name for service in answer.list_services_response.service}
        assert {VISION_SERVICE, "grpc.health.v1.Health"} <= names
        assert not any("worker" in name for name in names)
        break
    call.cancel()


@pytest.mark.parametrize("setting", ["port", "metrics_port"])
async def test_a_port_in_use_is_an_error_that_names_the_flag(engine: FakeEngine, setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="--" + setting.replace("_", "-")):
            async with running_server(engine, **{setting: taken.getsockname()[1]}):
                pass


async def test_an_invalid_certificate_stops_the_start(engine: FakeEngine, tmp_path: Path) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).write_text("no PEM")
    with pytest.raises(TlsError):
        async with running_server(engine, tls_cert=tmp_path / "cert", tls_key=tmp_path / "key"):
            pass


async def test_tls(engine: FakeEngine) -> None:
    folder = Path(__file__).parent.parent / "runtime" / "access" / "tls"
    async with running_server(engine, tls_cert=folder / "server.pem", tls_key=folder / "server.key") as server:
        credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{server.ports.grpc}", credentials) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            status = await stub.Check(health_pb2.HealthCheckRequest(service=VISION_SERVICE))
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await server.vision.Classify(classify_request(1))


def test_the_ready_file_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "ready.json"
    write_ready_file(file, Ports(grpc=1, metrics=2), "localhost")
    assert json.loads(file.read_text()) == {
        "host": "localhost",
        "port": 1,
        "metrics_port": 2,
        "pid": os.getpid(),
    }
    assert [*file.parent.iterdir()] == [file]


def test_the_ready_file_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "ready"
    os.mkfifo(pipe)
    reading = threading.Thread(target=lambda: read.append(pipe.read_text()))
    read: list[str] = []
    reading.start()
    write_ready_file(pipe, Ports(grpc=1, metrics=2), "localhost")
    reading.join()
    assert json.loads(read[0])["port"] == 1
    assert pipe.is_fifo()
