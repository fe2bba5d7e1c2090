"""Makes versions of the fake model, waits until a running server lists them, and asks them."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import (
    MANIFEST,
    Running,
    classify_request,
)
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.grpc.status import from_call_error

Status = tuple[str, str, int]
"""The name, version and state of one version, as the server lists it."""


def version(number: str, name: str = "fake", **changes: object) -> Manifest:
    """Returns the manifest of a version. Each version has a fingerprint of its own."""
    fingerprint = f"{name}-{number}".encode().hex().ljust(64, "0")
    return MANIFEST.model_copy(update={"name": name, "version": number, "fingerprint": fingerprint, **changes})


async def statuses(server: Running) -> list[Status]:
    answer = await server.vision.ListModels(pb.ListModelsRequest())
    return [(status.name, status.version, status.state) for status in answer.models]


async def until(server: Running, met: Callable[[list[Status]], bool]) -> None:
    """Asks for the list of models until `met` returns True for it. `met` may also test another condition."""
    async with asyncio.timeout(60):
        while not met(await statuses(server)):
            pass


async def until_ready(server: Running, *versions: str) -> None:
    """Waits until the server lists exactly these versions, all of them ready."""
    wanted = [("fake", number, pb.MODEL_STATE_READY) for number in versions]
    await until(server, lambda listed: listed == wanted)


async def rescan(server: Running, repository: FakeModelRepository) -> None:
    """Requests a scan and waits for it."""
    scans = repository.scans
    server.rescan.set()
    await until(server, lambda _: repository.scans > scans)


async def answered_by(server: Running, **selector: str) -> str:
    """Returns the name and version of the model that answers a Classify."""
    request = classify_request(3)
    request.model.MergeFrom(pb.ModelSelector(**selector))
    model = (await server.vision.Classify(request)).model
    return f"{model.name} {model.version}"


async def error_of(call: Awaitable[object]) -> ServiceError | None:
    """Returns the error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return from_call_error(refused.value)
