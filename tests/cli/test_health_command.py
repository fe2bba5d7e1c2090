"""Tests `zfserve health` and `is_serving` against the standard health service of gRPC."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from zfserve import AsyncClient, Client
from zfserve.errors import NotFound
from zfserve_cli.exit_statuses import FAILED, OK, UNREACHABLE, UNUSABLE
from zfserve_cli.main import main

_STATUSES = health_pb2.HealthCheckResponse


@pytest.fixture
def address() -> Iterator[str]:
    """Yields the address of a server that serves, but does not project."""
    servicer = health.HealthServicer()
    servicer.set("", _STATUSES.SERVING)
    servicer.set("projection", _STATUSES.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("service", "said", "status"),
    [([], "SERVING\n", OK), (["projection"], "NOT_SERVING\n", FAILED)],
)
def test_health_prints_the_status_and_returns_it(
    service: list[str], said: str, status: int, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", *service, "--address", address]) == status
    assert capsys.readouterr().out == said


def test_an_unknown_name_is_unusable(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "nothing", "--address", address]) == UNUSABLE
    assert capsys.readouterr().err.startswith("error: ")


def test_no_server_is_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--address", "localhost:1"]) == UNREACHABLE
    assert "no zfserve answers at localhost:1" in capsys.readouterr().err


def test_both_clients_check_health(address: str) -> None:
    async def ask() -> list[bool]:
        async with AsyncClient(address) as client:
            return [await client.is_serving(name) for name in ("", "projection")]

    with Client(address) as client:
        assert [client.is_serving(name) for name in ("", "projection")] == [True, False] == asyncio.run(ask())
        with pytest.raises(NotFound):
            client.is_serving("nothing")
