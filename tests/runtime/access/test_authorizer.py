"""Tests authentication and authorization through real channels."""

import asyncio
import logging
from pathlib import Path

import grpc
import pytest
from fakes.callers import bearer, guarded_server, write_callers
from fakes.clock import Clock
from fakes.scripted_server import failure_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from zfserve_runtime.access.authorizer import RECHECK_INTERVAL_S, Authorizer, current_caller
from zfserve_runtime.access.callers_file import (
    CallerEntry,
    CallersFile,
    CallersFileError,
    read_callers_file,
    write_callers_file,
)

UNARY, STREAM = "/test.Scripted/Unary", "/test.Scripted/Stream"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


async def test_a_token_names_its_caller_in_every_kind_of_method(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokens = write_callers(file, shop="all", archive="all")
    async with guarded_server(Authorizer(file)) as server:
        for name, token in tokens.items():
            assert await server.unary(*bearer(token), request="hello") == name
            assert await server.stream(*bearer(token)) == [name, "s"]
            assert await server.stream(*bearer(token), method="Write") == [name]
    assert current_caller().name == ""
    assert [vars(record)["caller"] for record in caplog.records] == ["shop"] * 3 + ["archive"] * 3


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ((), "must know who calls; send the metadata `authorization: Bearer TOKEN`"),
        (bearer("zfs_wrong"), "does not know the token"),
        (bearer(""), "does not know the token"),
        ((("authorization", "Basic dTpw"),), "does not know the token"),
        ((("authorization", "Bearer"),), "does not know the token"),
    ],
)
async def test_an_unknown_caller_is_refused_and_its_request_is_never_read(
    file: Path, metadata: tuple[tuple[str, str], ...], sentence: str
) -> None:
    write_callers(file, shop="all")
    async with guarded_server(Authorizer(file)) as server:
        for call in (server.unary(*metadata, request="x" * 100_000), server.stream(*metadata)):
            refused = await failure_of(call)
            assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
            assert sentence in (refused.details() or "")
        assert server.read == []


async def test_a_call_without_a_request_is_refused(file: Path) -> None:
    token = write_callers(file, shop="all")["shop"]
    async with guarded_server(Authorizer(file)) as server:
        refused = await failure_of(server.channel.stream_unary(UNARY)(iter(()), metadata=bearer(token)))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.details() == "the call ended before its request was sent"


async def test_the_digest_of_a_token_is_not_accepted(file: Path) -> None:
    write_callers(file, shop="all")
    digest = read_callers_file(file).callers[0].token_sha256
    assert digest is not None
    async with guarded_server(Authorizer(file)) as server:
        assert (await failure_of(server.unary(*bearer(digest)))).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_caller_may_call_what_it_is_permitted(file: Path) -> None:
    tokens = write_callers(file, narrow=UNARY, other="classify,describe")
    async with guarded_server(Authorizer(file)) as server:
        assert await server.unary(*bearer(tokens["narrow"])) == "narrow"
        for call in (server.stream(*bearer(tokens["narrow"])), server.unary(*bearer(tokens["other"]))):
            refused = await failure_of(call)
            assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
        assert refused.details() == f"other may not call {UNARY}; ask the service's operator to permit it"


async def test_health_is_open_and_reflection_is_not(file: Path) -> None:
    tokens = write_callers(file, viewer="describe", worker="classify")
    async with guarded_server(Authorizer(file)) as server:
        answer = await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(server.channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = [found async for found in reflection([request], metadata=bearer(tokens["viewer"]))]
        assert "grpc.health.v1.Health" in {service.name for service in listed.list_services_response.service}
        for metadata, code in (((), "UNAUTHENTICATED"), (bearer(tokens["worker"]), "PERMISSION_DENIED")):
            assert (await failure_of(reflection([request], metadata=metadata).read())).code().name == code


async def test_a_changed_file_is_read_again(file: Path) -> None:
    old, clock = write_callers(file, shop="all")["shop"], Clock()
    async with guarded_server(Authorizer(file, clock)) as server:
        new = write_callers(file, market="all")["market"]
        assert await server.unary(*bearer(old)) == "shop", "the file is not checked again this soon"
        clock.now_s += RECHECK_INTERVAL_S
        assert (await failure_of(server.unary(*bearer(old)))).code() is grpc.StatusCode.UNAUTHENTICATED
        assert await server.unary(*bearer(new)) == "market"


async def test_an_open_stream_ends_at_the_next_request_after_its_token_was_removed(file: Path) -> None:
    token, clock = write_callers(file, viewer="describe")["viewer"], Clock()
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with guarded_server(Authorizer(file, clock)) as server:
        call = reflection_pb2_grpc.ServerReflectionStub(server.channel).ServerReflectionInfo(metadata=bearer(token))
        await call.write(request)
        assert await call.read() is not grpc.aio.EOF
        write_callers(file, other="describe")
        clock.now_s += RECHECK_INTERVAL_S
        await call.write(request)
        assert (await failure_of(call.read())).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_broken_file_leaves_the_old_one_in_force(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    token, clock = write_callers(file, shop="all")["shop"], Clock()
    async with guarded_server(Authorizer(file, clock)) as server:
        await asyncio.to_thread(file.write_text, "{")
        for _ in range(3):
            clock.now_s += RECHECK_INTERVAL_S
            assert await server.unary(*bearer(token)) == "shop"
        logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.name for record in logged] == ["zfserve_runtime.access.file_reloader"], (
            "one line for one broken file"
        )
        await asyncio.to_thread(file.unlink)
        clock.now_s += RECHECK_INTERVAL_S
        assert await server.unary(*bearer(token)) == "shop"


def test_a_file_that_cannot_be_read_is_an_error_at_the_start(file: Path) -> None:
    with pytest.raises(CallersFileError, match="cannot be read: No such file"):
        Authorizer(file)


async def test_a_certificate_names_its_caller(file: Path) -> None:
    tokens = write_callers(file, shop="all")
    by_token = read_callers_file(file).callers
    by_certificate = CallerEntry(name="mesh", certificate="zfserve test client", allow=(UNARY,))
    async with guarded_server(Authorizer(None), tls=True) as server:
        assert await server.unary() == "localhost", "the first name of the certificate"
    async with guarded_server(Authorizer(file), tls=True) as server:
        refused = await failure_of(server.unary())
        assert (refused.code().name, (refused.details() or "")[:53]) == (
            "UNAUTHENTICATED",
            "this service does not know the certificate of localho",
        )
    write_callers_file(file, CallersFile(callers=(*by_token, by_certificate)))
    async with guarded_server(Authorizer(file), tls=True) as server:
        assert await server.unary() == "mesh"
        assert (await failure_of(server.stream())).code() is grpc.StatusCode.PERMISSION_DENIED
        assert await server.unary(*bearer(tokens["shop"])) == "shop", "a token takes precedence over the certificate"
        assert (await failure_of(server.unary(*bearer("wrong")))).code() is grpc.StatusCode.UNAUTHENTICATED
