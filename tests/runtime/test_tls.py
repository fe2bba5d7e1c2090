from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_runtime.health import SERVER, Health, add_health_and_reflection
from zfserve_runtime.tls import TlsError, server_credentials

FILES = Path(__file__).parent / "tls"


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_health_and_reflection(server, Health(SERVER))
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    yield f"localhost:{port}"
    await server.stop(None)


async def check(address: str, credentials: grpc.ChannelCredentials) -> int:
    async with grpc.aio.secure_channel(address, credentials) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        status: int = answer.status
        return status


def client_credentials(with_certificate: bool) -> grpc.ChannelCredentials:
    authority = (FILES / "ca.pem").read_bytes()
    if not with_certificate:
        return grpc.ssl_channel_credentials(authority)
    return grpc.ssl_channel_credentials(
        authority, (FILES / "client.key").read_bytes(), (FILES / "client.pem").read_bytes()
    )


async def test_a_client_that_knows_the_authority_may_call() -> None:
    async with serving(server_credentials(FILES / "server.pem", FILES / "server.key")) as address:
        assert await check(address, client_credentials(with_certificate=False)) == 2


async def test_mutual_tls_refuses_a_client_without_a_certificate() -> None:
    credentials = server_credentials(FILES / "server.pem", FILES / "server.key", FILES / "ca.pem")
    async with serving(credentials) as address:
        assert await check(address, client_credentials(with_certificate=True)) == 2
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(address, client_credentials(with_certificate=False))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "message"),
    [
        ("missing.pem", "server.key", None, "certificate .*missing.pem cannot be read: No such file"),
        ("server.pem", "missing.key", None, "key .*missing.key cannot be read: No such file"),
        ("server.pem", "client.key", None, "server.pem and the key .*client.key are not a pair"),
        ("README.md", "server.key", None, "README.md and .* are not a pair of PEM files"),
        ("server.pem", "locked.key", None, "passphrase"),
        ("server.pem", "server.key", "missing.pem", "client CA .*missing.pem cannot be read"),
        ("server.pem", "server.key", "README.md", "client CA .*README.md is not a PEM file"),
    ],
)
def test_unusable_files_are_named(certificate: str, key: str, client_ca: str | None, message: str) -> None:
    with pytest.raises(TlsError, match=message):
        server_credentials(FILES / certificate, FILES / key, FILES / client_ca if client_ca else None)
