"""A server with TLS, tokens and a worker behind mutual TLS is called by clients."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fakes.callers import TLS, write_callers
from fakes.serving import FakeEngine, FakeWorker, pixels_of, running_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve import AsyncClient, PermissionDenied, TlsOptions, Unauthenticated, Unavailable
from zfserve_protos.methods import PROJECTION
from zfserve_runtime.access.callers_file import CallersFileError
from zfserve_runtime.access.tls import TlsFiles

PAIR: dict[str, Any] = {"tls_cert": TLS / "server.pem", "tls_key": TLS / "server.key"}
TRUST = TlsOptions(ca=TLS / "ca.pem")
OURSELVES = TlsOptions(TLS / "ca.pem", TLS / "client.pem", TLS / "client.key")


async def test_clients_are_identified_by_their_tokens(tmp_path: Path) -> None:
    tokens = write_callers(tmp_path / "tokens.json", shop="classify", clerk="describe")
    async with running_server(FakeEngine(), tokens=tmp_path / "tokens.json", **PAIR) as server:
        address = f"localhost:{server.ports.grpc}"
        async with AsyncClient(address, tls=TRUST, token=tokens["shop"]) as shop:
            assert (await shop.classify(pixels_of(3))).classes[0].index == 3
            with pytest.raises(PermissionDenied, match="shop may not call /zfserve"):
                await shop.describe()
        async with AsyncClient(address, tls=TRUST, token=tokens["clerk"]) as clerk:
            assert (await clerk.describe()).model.name == "fake"
            with pytest.raises(PermissionDenied):
                _ = [projection async for projection in clerk.project(pixels_of(3), "conv1")]
        async with AsyncClient(address, tls=TRUST) as stranger:
            assert await stranger.is_serving()
            with pytest.raises(Unauthenticated, match="must know who calls"):
                await stranger.classify(pixels_of(3))


async def test_a_certificate_is_enough_if_the_server_asks_for_one() -> None:
    async with running_server(FakeEngine(), tls_client_ca=TLS / "ca.pem", **PAIR) as server:
        address = f"localhost:{server.ports.grpc}"
        async with AsyncClient(address, tls=OURSELVES) as client:
            assert (await client.classify(pixels_of(3))).classes[0].index == 3
        async with AsyncClient(address, tls=TRUST, timeout_s=2) as stranger:
            with pytest.raises(Unavailable):
                await stranger.classify(pixels_of(3))


async def test_projections_come_from_a_worker_behind_mutual_tls() -> None:
    towards: dict[str, Any] = {
        "worker_tls_ca": TLS / "ca.pem",
        "worker_tls_cert": TLS / "client.pem",
        "worker_tls_key": TLS / "client.key",
    }
    worker_files = TlsFiles(TLS / "server.pem", TLS / "server.key", TLS / "ca.pem")
    async with (
        FakeWorker().listening("localhost:0", worker_files) as port,
        running_server(FakeEngine(), worker=True, worker_address=f"localhost:{port}", **towards) as server,
    ):
        asked = health_pb2.HealthCheckRequest(service=PROJECTION)
        async for answer in health_pb2_grpc.HealthStub(server.channel).Watch(asked):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
        async with AsyncClient(f"127.0.0.1:{server.ports.grpc}") as client:
            assert len([each async for each in client.project(pixels_of(3), "conv1", strongest=2)]) == 2


async def test_a_server_with_an_unusable_file_of_callers_does_not_start(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "tokens.json").write_text, "{}}")
    with pytest.raises(CallersFileError, match="is not JSON"):
        async with running_server(FakeEngine(), tokens=tmp_path / "tokens.json"):
            pass
