import asyncio
import gc
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_runtime.access.tls import ClientTlsFiles, TlsError, TlsFiles, channel_credentials, server_credentials
from zfserve_runtime.grpc.health import SERVER, Health, add_health_and_reflection
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.telemetry.metrics import Metrics

FILES = Path(__file__).parent / "tls"
SERVER_PAIR = TlsFiles(FILES / "server.pem", FILES / "server.key")


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials) -> AsyncIterator[str]:
    server = InterceptingServer(Metrics())
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
    async with serving(server_credentials(SERVER_PAIR)) as address:
        assert await check(address, client_credentials(with_certificate=False)) == 2


async def test_mutual_tls_refuses_a_client_without_a_certificate() -> None:
    credentials = server_credentials(replace(SERVER_PAIR, client_ca=FILES / "ca.pem"))
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
        server_credentials(TlsFiles(FILES / certificate, FILES / key, FILES / client_ca if client_ca else None))


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "message"),
    [
        ("missing.pem", None, None, "CA .*missing.pem cannot be read: No such file"),
        ("README.md", None, None, "CA .*README.md is not a PEM file"),
        ("ca.pem", "client.pem", "server.key", "client.pem and the key .*server.key are not a pair"),
        ("ca.pem", "client.pem", "locked.key", "passphrase"),
    ],
)
def test_unusable_files_of_a_client_are_named(ca: str, certificate: str | None, key: str | None, message: str) -> None:
    pair = (None if name is None else FILES / name for name in (certificate, key))
    with pytest.raises(TlsError, match=message):
        channel_credentials(ClientTlsFiles(FILES / ca, *pair))


async def shown_at(address: str) -> bytes:
    """Returns the certificate (DER) that the server shows to a new connection."""

    def connect() -> bytes:
        context = ssl.create_default_context(cafile=FILES / "ca.pem")
        context.set_alpn_protocols(["h2"])
        host, port = address.split(":")
        with (
            socket.create_connection((host, int(port))) as raw,
            context.wrap_socket(raw, server_hostname=host) as encrypted,
        ):
            certificate = encrypted.getpeercert(binary_form=True)
            assert certificate is not None
            return certificate

    return await asyncio.to_thread(connect)


def der(pem: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((FILES / pem).read_text())


async def test_a_renewed_certificate_serves_the_next_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    shutil.copy(FILES / "server.pem", files.certificate)
    shutil.copy(FILES / "server.key", files.key)
    async with serving(server_credentials(files)) as address:
        gc.collect()  # gRPC keeps only a pointer to the credentials
        assert await shown_at(address) == der("server.pem")
        shutil.copy(FILES / "client.key", files.key)  # the certificate has not been renewed yet
        assert [await shown_at(address) for _ in range(3)] == [der("server.pem")] * 3
        (logged,) = [record for record in caplog.records if record.name == "zfserve_runtime.access.file_reloader"]
        assert logged.getMessage() == "the TLS certificate changed and cannot be used; the previous one stays in use"
        assert "are not a pair" in vars(logged)["error"]
        shutil.copy(FILES / "client.pem", files.certificate)
        assert await shown_at(address) == der("client.pem")
        assert await check(address, client_credentials(with_certificate=False)) == 2
    assert [record.levelname for record in caplog.records if record.name == "zfserve_runtime.access.file_reloader"] == [
        "ERROR",
        "INFO",
    ]


async def test_a_renewed_client_authority_takes_effect(tmp_path: Path) -> None:
    files = replace(SERVER_PAIR, client_ca=tmp_path / "ca.pem")
    shutil.copy(FILES / "ca.pem", tmp_path / "ca.pem")
    async with serving(server_credentials(files)) as address:
        assert await check(address, client_credentials(with_certificate=True)) == 2
        shutil.copy(FILES / "server.pem", tmp_path / "ca.pem")  # this authority has signed no certificate
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(address, client_credentials(with_certificate=True))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
