"""What is served once the start is over, and what keeps it from that."""

import pytest
from fakes.serving import (
    FakeEngine,
    running_server,
)
from fakes.shelf import Shelf
from fakes.versions import answered_by, refusal, until, version
from zfserve_engines.contract import EngineUnavailable
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import NotFound


async def test_several_models_and_versions_are_chosen_by_the_request(shelf: Shelf) -> None:
    for number in "123":
        shelf.put(version(number, "birds"), FakeEngine())
    shelf.put(version("7", "fish"), FakeEngine())
    shelf.put(version("1", "fish"), FakeEngine(), pinned=True)
    async with running_server(shelf=shelf, keep_versions=2) as server:
        assert await answered_by(server) == "birds 3"
        assert await answered_by(server, version="2") == "birds 2"
        assert await answered_by(server, name="fish") == "fish 7"
        assert await answered_by(server, name="fish", version="1") == "fish 1"
        for selector in ({"version": "1"}, {"name": "bird"}, {"name": "fish", "version": "2"}):
            assert isinstance(await refusal(answered_by(server, **selector)), NotFound)
        shelf.put(version("2", "cats"), FakeEngine())
        server.rescan.set()
        await until(server, lambda listed: ("cats", "2", pb.MODEL_STATE_READY) in listed)
        assert await answered_by(server) == "birds 3"
    async with running_server(shelf=shelf, default_model="fish") as server:
        assert await answered_by(server) == "fish 7"


async def test_the_start_is_strict_unless_told_otherwise(shelf: Shelf) -> None:
    shelf.put(version("1", "birds"), FakeEngine())
    shelf.put(version("2", "birds"), error=BundleError("a bad one, but there is another"))
    shelf.put(version("1", "fish"), error=EngineUnavailable("no engine can serve"))
    with pytest.raises(EngineUnavailable, match="no engine can serve"):
        async with running_server(shelf=shelf):
            pass
    async with running_server(shelf=shelf, strict_readiness=False) as server:
        assert await answered_by(server) == "birds 1"
        assert isinstance(await refusal(answered_by(server, name="fish")), NotFound)


async def test_a_start_that_is_not_strict_serves_what_comes_after_the_default(shelf: Shelf) -> None:
    shelf.put(version("1", "birds"), error=BundleError("its files are damaged"))
    shelf.put(version("1", "fish"), FakeEngine())
    async with running_server(shelf=shelf, strict_readiness=False) as server:
        assert await answered_by(server, name="fish") == "fish 1"
        refused = await refusal(answered_by(server))
        assert isinstance(refused, NotFound)
        assert "its files are damaged" in refused.message


async def test_a_default_model_that_is_not_there_is_an_error_at_the_start(shelf: Shelf) -> None:
    shelf.put(version("1", "birds"), FakeEngine())
    with pytest.raises(BundleError, match="--default-model is 'fish', and there is only birds"):
        async with running_server(shelf=shelf, default_model="fish"):
            pass
