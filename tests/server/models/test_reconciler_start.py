"""Tests which models are served after the start, and which errors prevent a start."""

import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import (
    FakeEngine,
    running_server,
)
from fakes.versions import answered_by, error_of, until, version
from zfserve_engines.contract import EngineUnavailable
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import NotFound


async def test_several_models_and_versions_are_chosen_by_the_request(repository: FakeModelRepository) -> None:
    for number in "123":
        repository.put(version(number, "birds"), FakeEngine())
    repository.put(version("7", "fish"), FakeEngine())
    repository.put(version("1", "fish"), FakeEngine(), pinned=True)
    async with running_server(repository=repository, keep_versions=2) as server:
        assert await answered_by(server) == "birds 3"
        assert await answered_by(server, version="2") == "birds 2"
        assert await answered_by(server, name="fish") == "fish 7"
        assert await answered_by(server, name="fish", version="1") == "fish 1"
        for selector in ({"version": "1"}, {"name": "bird"}, {"name": "fish", "version": "2"}):
            assert isinstance(await error_of(answered_by(server, **selector)), NotFound)
        repository.put(version("2", "cats"), FakeEngine())
        server.rescan.set()
        await until(server, lambda listed: ("cats", "2", pb.MODEL_STATE_READY) in listed)
        assert await answered_by(server) == "birds 3"
    async with running_server(repository=repository, default_model="fish") as server:
        assert await answered_by(server) == "fish 7"


async def test_the_start_is_strict_by_default(repository: FakeModelRepository) -> None:
    repository.put(version("1", "birds"), FakeEngine())
    repository.put(version("2", "birds"), error=BundleError("a bad one, but there is another"))
    repository.put(version("1", "fish"), error=EngineUnavailable("no engine can serve"))
    with pytest.raises(EngineUnavailable, match="no engine can serve"):
        async with running_server(repository=repository):
            pass
    async with running_server(repository=repository, strict_readiness=False) as server:
        assert await answered_by(server) == "birds 1"
        assert isinstance(await error_of(answered_by(server, name="fish")), NotFound)


async def test_a_start_that_is_not_strict_serves_other_models_than_the_default(repository: FakeModelRepository) -> None:
    repository.put(version("1", "birds"), error=BundleError("its files are damaged"))
    repository.put(version("1", "fish"), FakeEngine())
    async with running_server(repository=repository, strict_readiness=False) as server:
        assert await answered_by(server, name="fish") == "fish 1"
        error = await error_of(answered_by(server))
        assert isinstance(error, NotFound)
        assert "its files are damaged" in error.message


async def test_a_missing_default_model_is_an_error_at_the_start(repository: FakeModelRepository) -> None:
    repository.put(version("1", "birds"), FakeEngine())
    with pytest.raises(BundleError, match="--default-model is 'fish'; the model folders hold only birds"):
        async with running_server(repository=repository, default_model="fish"):
            pass
