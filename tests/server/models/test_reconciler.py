"""Versions come and go while the server runs: through a real channel, with engines that are fakes."""

import asyncio
import itertools
import threading
from pathlib import Path

import pytest
from fakes.serving import (
    MANIFEST,
    FakeEngine,
    FakeWorker,
    classify_request,
    projection_is,
    raw_image,
    running_server,
)
from fakes.shelf import Shelf
from fakes.versions import answered_by, look, refusal, statuses, until, until_ready, version
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from zfserve_engines.contract import EngineUnavailable
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineLost, InvalidInput, NotFound
from zfserve_server import app
from zfserve_server.models.registry import ModelRegistry, ModelState
from zfserve_server.models.served_model import ServedModel


async def test_no_request_is_lost_while_versions_change_under_load(shelf: Shelf) -> None:
    engines = {number: FakeEngine() for number in "12345"}
    shelf.put(version("1"), engines["1"])
    served: list[list[str]] = [[] for _ in range(24)]  # by client, the versions that answered
    async with running_server(shelf=shelf) as server:

        async def keep_asking(client: int) -> None:
            while not served[client] or served[client][-1] != "5":
                identity = 1000 * client + len(served[client])
                answer = await server.vision.Classify(classify_request(identity))
                assert answer.features[0] == identity
                served[client].append(answer.model.version)

        clients = [asyncio.create_task(keep_asking(client)) for client in range(len(served))]
        for number in "2345":
            await asyncio.to_thread(engines[f"{int(number) - 1}"].runs.acquire, timeout=30)
            shelf.put(version(number), engines[number])
            server.rescan.set()
            await until_ready(server, number)
            assert all(engines[other].closed for other in engines if other < number)
        await asyncio.gather(*clients)
        assert not engines["5"].closed
    assert all(versions == sorted(versions) for versions in served)
    assert {*itertools.chain(*served)} == {*"12345"}
    assert engines["5"].closed


async def test_the_old_version_answers_what_it_accepted_before_it_is_closed(shelf: Shelf) -> None:
    old, new = FakeEngine(), FakeEngine()
    shelf.put(version("1"), old)
    async with running_server(shelf=shelf) as server:
        old.open.clear()
        accepted = [asyncio.ensure_future(server.vision.Classify(classify_request(0)))]
        await old.begun()
        accepted.append(asyncio.ensure_future(server.vision.Classify(classify_request(1))))
        await server.told('zfserve_queue_depth{model="fake",version="1"} 1.0')
        shelf.put(version("2"), new)
        server.rescan.set()
        ready, retiring = pb.MODEL_STATE_READY, pb.MODEL_STATE_RETIRING
        await until(server, lambda listed: listed == [("fake", "2", ready), ("fake", "1", retiring)])
        assert await answered_by(server) == "fake 2"
        assert [old.closed, new.closed] == [False, False]
        old.open.set()
        assert {(await answer).model.version for answer in accepted} == {"1"}
        await until_ready(server, "2")
        assert old.closed
        assert 'version="1"' not in await server.told('zfserve_model_loads_total{model="fake",result="ready"} 2.0')


async def test_a_version_is_retiring_from_the_step_in_which_it_is_found_no_more(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[str, ModelState]]] = []

    class Looking(ModelRegistry):
        def remove(self, model: ServedModel) -> None:
            super().remove(model)
            # Before any task that is begun after this.
            asyncio.get_running_loop().call_soon(self._note)

        def _note(self) -> None:
            seen.append([(status.version, status.state) for status in self.statuses()])

    monkeypatch.setattr(app, "ModelRegistry", Looking)
    shelf.put(version("1"), FakeEngine())
    async with running_server(shelf=shelf) as server:
        shelf.put(version("2"), FakeEngine())
        server.rescan.set()
        await until_ready(server, "2")
    assert seen == [[("2", ModelState.READY), ("1", ModelState.RETIRING)]]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BundleError("model.onnx in /shelf/fake/2 differs from its digest"), "model.onnx in fake 2 differs"),
        (EngineUnavailable("/tmp/cache/a.plan: probabilities are 0.3 away from the golden ones"), "a.plan: prob"),
        (OSError(28, "No space left on device"), "cannot be read or written: No space left on device"),
        (ZeroDivisionError("/secret"), "unexpected error (ZeroDivisionError)"),
    ],
)
async def test_a_bad_version_is_refused_and_tried_again_when_it_has_changed(
    shelf: Shelf, error: Exception, reason: str
) -> None:
    good = FakeEngine()
    shelf.put(version("1"), good)
    async with running_server(shelf=shelf, reload_interval=0.01) as server:
        shelf.put(version("2"), error=error)
        failed = [("fake", "2", pb.MODEL_STATE_FAILED), ("fake", "1", pb.MODEL_STATE_READY)]
        await until(server, lambda listed: listed == failed)
        described = await server.vision.DescribeModel(pb.DescribeModelRequest())
        assert (described.model.version, described.versions[0].version) == ("1", "2")
        assert reason in described.versions[0].reason
        assert "/" not in described.versions[0].reason
        await server.told('zfserve_model_refused{model="fake",version="2"} 1.0')
        scans = shelf.scans
        await until(server, lambda _: shelf.scans > scans + 3)
        assert shelf.opened == [("fake", "1"), ("fake", "2")]
        assert await answered_by(server) == "fake 1"
        assert isinstance(await refusal(answered_by(server, version="2")), NotFound)
        shelf.put(version("2"), FakeEngine())
        await until_ready(server, "2")
        assert good.closed
        assert "zfserve_model_refused{" not in await server.told('result="refused"} 1.0')


async def test_whoever_asks_for_a_look_has_what_was_refused_tried_again(shelf: Shelf) -> None:
    shelf.put(version("1"), FakeEngine())
    async with running_server(shelf=shelf, reload_interval=0) as server:
        shelf.put(version("2"), error=OSError(28, "No space left on device"))
        for _ in range(2):
            await look(server, shelf)
        await until(server, lambda _: shelf.opened.count(("fake", "2")) == 2)


async def test_a_version_that_is_taken_away_rolls_back_and_the_last_one_stays(shelf: Shelf) -> None:
    first, second = FakeEngine(), FakeEngine()
    shelf.put(version("1"), first)
    shelf.put(version("2"), second)
    async with running_server(shelf=shelf) as server:
        assert await statuses(server) == [("fake", "2", pb.MODEL_STATE_READY)]
        assert shelf.opened == [("fake", "2")]
        shelf.take(version("2"))
        server.rescan.set()
        await until_ready(server, "1")
        assert second.closed
        for fault in (None, OSError("the volume is gone")):
            shelf.fault = fault
            if fault is None:
                shelf.take(version("1"))
            await look(server, shelf)
            assert await answered_by(server) == "fake 1"
        assert not first.closed


async def test_a_version_replaced_in_place_takes_over_from_itself(shelf: Shelf) -> None:
    before, after = FakeEngine(), FakeEngine()
    shelf.put(version("1"), before)
    async with running_server(shelf=shelf) as server:
        shelf.put(version("1", fingerprint="0" * 64), after)
        server.rescan.set()
        await until(server, lambda _: before.closed)
        assert (await server.vision.Classify(classify_request(3))).model.fingerprint == "0" * 64
        await until_ready(server, "1")
        assert not after.closed


async def test_a_version_that_lies_in_two_folders_is_served_from_one(shelf: Shelf) -> None:
    shelf.put(version("1"), FakeEngine())
    shelf.put(version("1"), FakeEngine(), folder="2")  # copied, and its manifest not changed
    async with running_server(shelf=shelf, keep_versions=2) as server:
        assert shelf.opened == [("fake", "1")]
        (status,) = (await server.vision.ListModels(pb.ListModelsRequest())).models
        assert (status.state, status.is_default) == (pb.MODEL_STATE_READY, True)
        assert "lies in two folders" in status.reason


async def test_projections_under_way_keep_their_version(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put(version("1"), FakeEngine())
    address = f"unix:{tmp_path}/worker.sock"
    worker = FakeWorker(fingerprint=None, answers=1)
    request = pb.ProjectRequest(image=classify_request(3).image, layer="conv1", strongest=2)
    async with (
        worker.listening(address),
        running_server(shelf=shelf, worker=True, worker_address=address) as server,
    ):
        await projection_is(server, serving=True)
        call = server.vision.Project(request)
        first = await call.read()
        assert isinstance(first, pb.ProjectResponse)
        assert first.model.version == "1"
        shelf.put(version("2"), FakeEngine())
        await look(server, shelf)
        await until(server, lambda listed: ("fake", "2", pb.MODEL_STATE_READY) in listed)
        assert ("fake", "1", pb.MODEL_STATE_RETIRING) in await statuses(server)
        assert len(worker.announced) == 2, "the worker still has to hold the old version's network"
        call.cancel()
        await until_ready(server, "2")


async def test_a_version_that_works_takes_over_health_from_one_that_stalls(shelf: Shelf) -> None:
    stalled, fresh = FakeEngine(max_batch_size=1), threading.Event()

    def reopen() -> FakeEngine:
        fresh.wait(60)
        return FakeEngine()

    shelf.reopen = reopen
    shelf.put(version("1"), stalled)
    async with running_server(shelf=shelf, engine_timeout=0.2) as server:
        health = HealthStub(server.channel)

        async def until_health_is(status: int) -> None:
            async with asyncio.timeout(60):
                while (await health.Check(HealthCheckRequest())).status != status:
                    pass

        stalled.open.clear()
        calls = [asyncio.ensure_future(server.vision.Classify(classify_request(value))) for value in (1, 2)]
        await until_health_is(HealthCheckResponse.NOT_SERVING)
        shelf.put(version("2"), FakeEngine())
        server.rescan.set()
        await until_health_is(HealthCheckResponse.SERVING)
        assert ("fake", "1", pb.MODEL_STATE_RETIRING) in await statuses(server)
        fresh.set()
        stalled.open.set()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_device_lost_while_a_version_is_loaded_ends_the_server(shelf: Shelf) -> None:
    shelf.put(version("1"), FakeEngine())
    async with running_server(shelf=shelf) as server:
        shelf.put(version("2"), error=EngineLost("the card fell off the bus"))
        server.rescan.set()
        await asyncio.wait([server.ended])
        assert isinstance(server.ended.exception(), EngineLost)


async def test_a_reference_belongs_to_the_version_that_gave_it_out(shelf: Shelf, tmp_path: Path) -> None:
    small = version("1", "small", input=MANIFEST.input.model_copy(update={"height": 4, "width": 4}))
    shelf.put(version("1"), FakeEngine())
    shelf.put(small, FakeEngine())
    worker, address = FakeWorker(fingerprint=None), f"unix:{tmp_path}/worker.sock"
    async with (
        worker.listening(address),
        running_server(shelf=shelf, keep_versions=2, worker=True, worker_address=address) as server,
    ):
        await until(server, lambda _: {*worker.announced} == {version("1").fingerprint, small.fingerprint})
        first = (await server.vision.Classify(classify_request(3))).image_reference
        shelf.put(version("2"), FakeEngine())
        server.rescan.set()
        await until(server, lambda listed: ("fake", "2", pb.MODEL_STATE_READY) in listed)

        def project(**selector: str) -> pb.ProjectRequest:
            image = pb.Image(reference=first)
            return pb.ProjectRequest(image=image, layer="conv1", strongest=1, model=pb.ModelSelector(**selector))

        (answer,) = [message async for message in server.vision.Project(project())]
        assert (answer.model.version, worker.requests[0].fingerprint) == ("1", version("1").fingerprint)
        for other in ({"name": "small"}, {"name": "fake"}):
            error = await refusal(server.vision.Project(project(**other)).read())
            assert isinstance(error, InvalidInput)
            assert (error.field, "was given out by fake 1" in error.message) == ("image.reference", True)
        classify = pb.ClassifyRequest(image=pb.Image(reference=first))
        assert (await server.vision.Classify(classify)).model.version == "1"
        shelf.put(version("3"), FakeEngine())
        server.rescan.set()
        await until(server, lambda _: version("1").fingerprint not in worker.announced)
        error = await refusal(server.vision.Project(project()).read())
        assert isinstance(error, NotFound)
        assert "not served any more" in error.message
        newest = server.vision.Project(pb.ProjectRequest(image=raw_image(1), layer="conv1"))
        assert len([message async for message in newest]) == 6
