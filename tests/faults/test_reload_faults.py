"""If a new version cannot be loaded, the old version serves on, and a good version takes over later.

The disk is full or the version's files are damaged. tests/server/models/test_reload.py tests damage to real files.
"""

import asyncio
import errno

import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import MANIFEST, FakeEngine, Running, classify_request, running_server
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import BundleError

NEWER, NEWEST = (MANIFEST.model_copy(update={"version": version}) for version in ("8", "9"))


async def served(server: Running) -> str:
    """Returns the version that answers."""
    return (await server.vision.Classify(classify_request(3))).model.version


async def wait_for_state(server: Running, version: str, state: int) -> None:
    """Requests scans until that version is in that state."""
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
    repository = FakeModelRepository()
    repository.put(MANIFEST, engine)
    async with running_server(repository=repository) as server:
        repository.put(NEWER, FakeEngine(), error=fault)
        await wait_for_state(server, "8", pb.MODEL_STATE_FAILED)
        assert await served(server) == "7"
        repository.fault = OSError(errno.ENOSPC, "No space left on device")
        server.rescan.set()
        assert await served(server) == "7"
        repository.fault = None
        repository.put(NEWEST, FakeEngine())
        await wait_for_state(server, "9", pb.MODEL_STATE_READY)
        assert await served(server) == "9"
