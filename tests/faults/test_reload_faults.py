"""A new version that cannot be had, with the disk full or its files damaged: the old one serves on, and a good one
takes over later. Damage to real files is in tests/server/models/test_reload.py."""

import asyncio
import errno

import pytest
from fakes.serving import MANIFEST, FakeEngine, Running, classify_request, running_server
from fakes.shelf import Shelf
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import BundleError

NEWER, NEWEST = (MANIFEST.model_copy(update={"version": version}) for version in ("8", "9"))


async def served(server: Running) -> str:
    return (await server.vision.Classify(classify_request(3))).model.version


async def becomes(server: Running, version: str, state: int) -> None:
    """Look for new versions until that one is in that state."""
    async with asyncio.timeout(60):
        while True:
            server.rescan.set()
            models = (await server.vision.ListModels(pb.ListModelsRequest())).models
            if (version, state) in [(model.version, model.state) for model in models]:
                return


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        BundleError("model.onnx is not the file that the manifest names"),
        MemoryError(),
    ],
    ids=lambda fault: type(fault).__name__ + str(getattr(fault, "errno", "")),
)
async def test_the_old_version_serves_on_and_a_good_one_takes_over(engine: FakeEngine, fault: Exception) -> None:
    shelf = Shelf()
    shelf.put(MANIFEST, engine)
    async with running_server(shelf=shelf) as server:
        shelf.put(NEWER, FakeEngine(), error=fault)
        await becomes(server, "8", pb.MODEL_STATE_FAILED)
        assert await served(server) == "7"
        shelf.fault = OSError(errno.ENOSPC, "No space left on device")
        server.rescan.set()
        assert await served(server) == "7"
        shelf.fault = None
        shelf.put(NEWEST, FakeEngine())
        await becomes(server, "9", pb.MODEL_STATE_READY)
        assert await served(server) == "9"
