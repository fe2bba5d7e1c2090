"""Tests calls that are checked before their request is read, through real channels."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.callers import bearer, guarded_server, write_callers
from fakes.scripted_server import failure_of
from zfserve_runtime.access.authorizer import Authorizer
from zfserve_runtime.errors import Overloaded
from zfserve_runtime.grpc.method_handlers import Metadata

UNARY = "/test.Scripted/Unary"


def refuse_the_unwanted(context: Any, metadata: Metadata) -> None:
    if dict(metadata).get("wanted") != "yes":
        raise Overloaded("there is no room", retry_after_s=1.5)


async def test_a_refused_call_is_never_read() -> None:
    async with guarded_server(None, check=refuse_the_unwanted) as server:
        refused = await failure_of(server.unary(("wanted", "no"), request="x" * 1_000_000))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "there is no room"
        assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"
        assert server.read == []
        assert await server.unary(("wanted", "yes"), request="hello") == ""
        assert len(server.read) == 1
        assert await server.stream() == ["", "s"], "this method has no check"


async def test_no_call_is_checked_while_the_check_does_not_apply() -> None:
    loaded = False
    async with guarded_server(None, check=refuse_the_unwanted, applies=lambda: loaded) as server:
        for loaded in (False, True, False):
            if loaded:
                assert (await failure_of(server.unary())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            else:
                assert await server.unary() == ""


async def test_an_unauthenticated_call_meets_no_other_check(tmp_path: Path) -> None:
    checked: list[Any] = []
    token = write_callers(tmp_path / "tokens.json", shop="all")["shop"]

    def check(context: Any, metadata: Metadata) -> None:
        checked.append(metadata)

    async with guarded_server(Authorizer(tmp_path / "tokens.json"), check=check) as server:
        assert (await failure_of(server.unary())).code() is grpc.StatusCode.UNAUTHENTICATED
        assert checked == []
        assert await server.unary(*bearer(token)) == "shop"
        assert len(checked) == 1


@pytest.mark.parametrize("way", ["cancelled", "late", "silent"])
async def test_a_caller_that_goes_away_before_it_sends_its_request(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log has another status for a cancelled call, a late call and a call without a request."""
    caplog.set_level(logging.INFO)
    checked, serving = asyncio.Event(), list[Any]()

    def check(context: Any, metadata: Metadata) -> None:
        serving.append(asyncio.current_task())
        checked.set()

    async def requests() -> AsyncIterator[bytes]:
        await (checked if way == "silent" else asyncio.Event()).wait()
        no_requests: tuple[bytes, ...] = ()
        for request in no_requests:
            yield request

    async with guarded_server(None, check=check) as server:
        send: Any = server.channel.stream_unary(UNARY)
        call = send(requests(), timeout=0.2 if way == "late" else 60)
        await checked.wait()
        if way == "cancelled":
            call.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call
        await asyncio.wait(serving)
    status = {"cancelled": "CANCELLED", "late": "DEADLINE_EXCEEDED", "silent": "INVALID_ARGUMENT"}[way]
    assert [vars(record)["status"] for record in caplog.records] == [status]


async def test_a_refused_call_leaves_nothing_to_the_garbage_collector() -> None:
    """The error must not hold the call through its traceback."""
    raised = []

    def remembered() -> Overloaded:
        error = Overloaded("there is no room")
        raised.append(weakref.ref(error))
        return error

    def check(context: Any, metadata: Metadata) -> None:
        raise remembered()

    async with guarded_server(None, check=check) as server:
        gc.disable()
        try:
            await failure_of(server.unary())
            await asyncio.sleep(0.1)
            assert [error() for error in raised] == [None]
        finally:
            gc.enable()
