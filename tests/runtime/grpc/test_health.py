"""Tests the standard health protocol with the stubs that every client uses."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from zfserve_protos.methods import PROJECTION, VISION_SERVICE
from zfserve_runtime.grpc.health import MAX_WATCHES_PER_CONNECTION, SERVER, Health, add_health_and_reflection
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.telemetry.metrics import Metrics

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def health() -> Health:
    return Health(SERVER, VISION_SERVICE, PROJECTION)


@pytest.fixture
async def channel(health: Health) -> AsyncIterator[grpc.aio.Channel]:
    server = InterceptingServer(Metrics())
    add_health_and_reflection(server, health, VISION_SERVICE)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"localhost:{port}") as opened:
        yield opened
    await server.stop(None)


async def check(channel: grpc.aio.Channel, service: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    status: int = answer.status
    return status


def watch(channel: grpc.aio.Channel, service: str) -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))


async def test_a_dead_worker_takes_projection_down_and_nothing_else(health: Health, channel: grpc.aio.Channel) -> None:
    assert await check(channel, VISION_SERVICE) == NOT_SERVING
    health.serving(SERVER, VISION_SERVICE, PROJECTION)
    health.not_serving(PROJECTION)
    assert await check(channel, SERVER) == SERVING
    assert await check(channel, VISION_SERVICE) == SERVING
    assert await check(channel, PROJECTION) == NOT_SERVING
    listed = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
    assert {name: answer.status for name, answer in listed.statuses.items()} == {
        SERVER: SERVING,
        VISION_SERVICE: SERVING,
        PROJECTION: NOT_SERVING,
    }
    assert (health.is_serving(VISION_SERVICE), health.is_serving(PROJECTION)) == (True, False)


async def test_probes_leave_no_line_in_the_log(channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "zfserve_runtime")
    await check(channel, SERVER)
    assert [record.levelname for record in caplog.records if record.name.startswith("zfserve_")] == ["DEBUG"]


async def test_an_unknown_service_is_not_found(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(channel, "zfserve.v1.Elsewhere")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_reports_each_change_and_ends_with_the_drain(health: Health, channel: grpc.aio.Channel) -> None:
    watching = watch(channel, PROJECTION)
    assert (await watching.read()).status == NOT_SERVING
    health.serving(PROJECTION)
    assert (await watching.read()).status == SERVING
    health.serving(SERVER)  # another service changes: no report
    health.drain()
    assert (await watching.read()).status == NOT_SERVING
    health.end_watches()
    assert await watching.read() is grpc.aio.EOF


async def test_watch_of_an_unknown_service_waits_for_it(health: Health, channel: grpc.aio.Channel) -> None:
    watching = watch(channel, "later")
    assert (await watching.read()).status == SERVICE_UNKNOWN
    health.serving("later")
    assert (await watching.read()).status == SERVING


async def test_nothing_serves_again_after_the_drain(health: Health, channel: grpc.aio.Channel) -> None:
    health.drain()
    health.serving(SERVER)
    assert await check(channel, SERVER) == NOT_SERVING


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    listed = {service.name for service in (await call.read()).list_services_response.service}
    assert {VISION_SERVICE, "grpc.health.v1.Health"} <= listed


async def test_the_watches_of_a_connection_are_limited(health: Health, channel: grpc.aio.Channel) -> None:
    watches = [watch(channel, SERVER) for _ in range(MAX_WATCHES_PER_CONNECTION)]
    for each in watches:
        assert (await each.read()).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await watch(channel, SERVER).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    watches[0].cancel()
    async with asyncio.timeout(60):
        while True:
            with suppress(grpc.aio.AioRpcError):
                assert (await watch(channel, SERVER).read()).status == NOT_SERVING
                return
