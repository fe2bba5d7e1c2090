"""Versions of fake models in a server that runs: made, waited for, asked."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest
from fakes.serving import (
    MANIFEST,
    Running,
    classify_request,
)
from fakes.shelf import Shelf
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.grpc.status import from_call_error

Status = tuple[str, str, int]
"""Name, version and state, as the server lists them."""


def version(number: str, name: str = "fake", **changes: object) -> Manifest:
    """Each with weights of its own."""
    fingerprint = f"{name}-{number}".encode().hex().ljust(64, "0")
    return MANIFEST.model_copy(update={"name": name, "version": number, "fingerprint": fingerprint, **changes})


async def statuses(server: Running) -> list[Status]:
    answer = await server.vision.ListModels(pb.ListModelsRequest())
    return [(status.name, status.version, status.state) for status in answer.models]


async def until(server: Running, met: Callable[[list[Status]], bool]) -> None:
    """Ask for what the server lists until that, or something else that `met` looks at, is as wanted."""
    async with asyncio.timeout(60):
        while not met(await statuses(server)):
            pass


async def until_ready(server: Running, *versions: str) -> None:
    """Wait until just these versions are known, all of them ready."""
    wanted = [("fake", number, pb.MODEL_STATE_READY) for number in versions]
    await until(server, lambda listed: listed == wanted)


async def look(server: Running, shelf: Shelf) -> None:
    """Have a look taken, and wait for it."""
    scans = shelf.scans
    server.rescan.set()
    await until(server, lambda _: shelf.scans > scans)


async def answered_by(server: Running, **selector: str) -> str:
    request = classify_request(3)
    request.model.MergeFrom(pb.ModelSelector(**selector))
    model = (await server.vision.Classify(request)).model
    return f"{model.name} {model.version}"


async def refusal(call: Awaitable[object]) -> ServiceError | None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return from_call_error(refused.value)
