"""Tests one client with several servers. Each server that serves gets calls, and a server that stops gets none."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fakes.vision_service import FakeVisionService, listening
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer
from zfserve import Client
from zfserve.errors import Unavailable
from zfserve_cli.exit_statuses import FAILED, OK, UNREACHABLE
from zfserve_cli.main import main

VISION_SERVICE = "zfserve.v1.VisionService"
PHOTO = b"1"

Replica = tuple[FakeVisionService, HealthServicer]


@pytest.fixture
def replicas() -> list[Replica]:
    both = [(FakeVisionService(), HealthServicer()) for _ in range(2)]
    for _, health in both:
        set_health(health, health_pb2.HealthCheckResponse.SERVING)
    return both


@pytest.fixture
def address(replicas: list[Replica]) -> Iterator[str]:
    with ExitStack() as stack:
        ports = [stack.enter_context(listening(service, health=health)) for service, health in replicas]
        yield ",".join(f"127.0.0.1:{port}" for port in ports)


def set_health(health: HealthServicer, status: int) -> None:
    for name in ("", VISION_SERVICE):
        health.set(name, status)


def calls_until(client: Client, replicas: list[Replica], served: tuple[bool, bool], in_a_row: int = 6) -> None:
    """Calls until exactly the `served` replicas get calls, several times in a row. Changes of health take some time."""
    recent: list[tuple[bool, ...]] = []
    for _ in range(5000):
        before = [len(service.classify_requests) for service, _ in replicas]
        for _ in range(2):  # round robin: two calls reach two servers
            client.classify(PHOTO)
        reached = tuple(
            len(service.classify_requests) > count for (service, _), count in zip(replicas, before, strict=True)
        )
        recent = [*recent, reached][-in_a_row:]
        if recent == [served] * in_a_row:
            return
    pytest.fail(f"the last calls reached {recent}, and never {served}")


def test_a_server_that_stops_is_left_out_before_it_refuses_a_call(replicas: list[Replica], address: str) -> None:
    with Client(address) as client:
        calls_until(client, replicas, (True, True))
        set_health(replicas[0][1], health_pb2.HealthCheckResponse.NOT_SERVING)
        calls_until(client, replicas, (False, True))
        set_health(replicas[0][1], health_pb2.HealthCheckResponse.SERVING)
        calls_until(client, replicas, (True, True))


def test_servers_that_do_not_serve_can_still_be_asked_for_health(
    replicas: list[Replica], address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", "--address", address]) == OK
    for _, health in replicas:
        set_health(health, health_pb2.HealthCheckResponse.NOT_SERVING)
    assert main(["health", "--address", address]) == FAILED
    assert capsys.readouterr().out == "SERVING\nNOT_SERVING\n"
    with Client(address) as client, pytest.raises(Unavailable):
        client.classify(PHOTO)
    assert main(["info", "--address", address]) == UNREACHABLE
    assert f"no server at {address} is ready" in capsys.readouterr().err


def test_one_server_alone_gives_its_own_refusal(replicas: list[Replica]) -> None:
    service, health = replicas[0]
    set_health(health, health_pb2.HealthCheckResponse.NOT_SERVING)
    with listening(service, health=health) as port, Client(f"127.0.0.1:{port}") as client:
        client.classify(PHOTO)
    assert len(service.classify_requests) == 1
