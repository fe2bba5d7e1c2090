"""Tests where a server may listen, what it logs about the address, and how many connections it accepts."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_runtime.grpc.health import SERVER, Health, add_health_and_reflection
from zfserve_runtime.grpc.listener import find_exposure, host_and_port, is_local, open_port
from zfserve_runtime.grpc.options import server_options

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""The channel option that gives a channel its own connections. By default the channels of a process share them."""


@pytest.mark.parametrize(
    "address",
    ["localhost", "localhost:1", "127.0.0.1:1", "127.9.9.9", "::1", "[::1]:8500", "unix:/run/x", "unix-abstract:x"],
)
def test_local_addresses_need_no_tls(address: str) -> None:
    assert is_local(address)
    assert find_exposure("--host", address, encrypted=False, allow_insecure=False) is None


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.0.0.0:1",
        "::",
        "[::]:1",
        "10.0.0.1:1",
        "[2001:db8::1]:1",
        "zfserve.local:1",
        "localhost.example",
        "",
    ],
)
def test_public_addresses_need_tls_or_consent(address: str) -> None:
    assert not is_local(address)
    fault = find_exposure("--host", address, encrypted=False, allow_insecure=False)
    assert fault is not None
    assert fault.startswith(f"--host {address} can be reached from other machines")
    assert find_exposure("--host", address, encrypted=True, allow_insecure=False) is None
    assert find_exposure("--host", address, encrypted=False, allow_insecure=True) is None


@pytest.mark.parametrize(
    ("address", "callers_known", "warnings"),
    [
        ("0.0.0.0:0", False, ["without TLS", "without tokens"]),
        ("0.0.0.0:0", True, ["without TLS"]),
        ("[::1]:0", False, []),
    ],
)
async def test_the_log_warns_of_a_public_address(
    address: str, callers_known: bool, warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    server = grpc.aio.server()
    assert open_port(server, address, None, callers_known=callers_known, flag="--host") > 0
    await server.start()
    await server.stop(None)
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.partition(" on a public address")[0] for message in logged] == warnings


async def check(channel: grpc.aio.Channel, **call: object) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), **call)
    status: int = answer.status
    return status


@asynccontextmanager
async def limited_server(
    max_connections: int, health: Health | None = None, max_connection_age_s: float | None = None
) -> AsyncIterator[str]:
    options = server_options(max_connections=max_connections, max_connection_age_s=max_connection_age_s)
    server = grpc.aio.server(options=options)
    add_health_and_reflection(server, health or Health(SERVER))
    port = open_port(server, "127.0.0.1:0", None, callers_known=False, flag="--port")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_connections_over_the_limit_are_closed_until_another_one_closes() -> None:
    async with limited_server(2) as address:
        first, second = (grpc.aio.insecure_channel(address, OWN_CONNECTION) for _ in range(2))
        assert [await check(channel) for channel in (first, second)] == [2, 2]
        async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as third:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await check(third)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            await first.close()
            assert await check(third, wait_for_ready=True) == 2
        await second.close()


async def test_metadata_is_bounded() -> None:
    async with limited_server(2) as address, grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(channel, metadata=(("x", "y" * 20_000),))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await check(channel) == 2


async def test_an_old_connection_takes_no_new_calls_and_loses_none() -> None:
    health = Health(SERVER)
    async with (
        limited_server(9, health, max_connection_age_s=0.1) as address,
        grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel,
    ):
        watch = aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)  # the client must connect again
        assert await check(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        health.serving(SERVER)
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING


def test_connections_have_no_age_limit_by_default() -> None:
    assert "grpc.max_connection_age_ms" not in dict(server_options())


@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_an_ipv6_host_may_stand_without_brackets(host: str) -> None:
    assert host_and_port(host, 8500) == "[::1]:8500"
    server = grpc.aio.server()
    port = open_port(server, host_and_port(host, 0), None, callers_known=True, flag="--port")
    assert port > 0
    await server.stop(None)
