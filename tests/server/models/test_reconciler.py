"""Versions come and go while the server runs. The tests use a real channel and fake engines."""

import asyncio
import itertools
import threading
from pathlib import Path

import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import (
    MANIFEST,
    FakeEngine,
    FakeWorker,
    classify_request,
    projection_is,
    raw_image,
    running_server,
)
from fakes.versions import answered_by, error_of, rescan, statuses, until, until_ready, version
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from zfserve_engines.contract import EngineUnavailable
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineLost, InvalidInput, NotFound
from zfserve_server import app
from zfserve_server.models.registry import ModelRegistry, ModelState
from zfserve_server.models.served_model import ServedModel


async def test_no_request_is_lost_while_versions_change_under_load(repository: FakeModelRepository) -> None:
    engines = {number: FakeEngine() for number in "12345"}
    repository.put(version("1"), engines["1"])
    served: list[list[str]] = [[] for _ in range(24)]  # for each client, the versions that answered
    async with running_server(repository=repository) as server:

        async def keep_asking(client: int) -> None:
            while not served[client] or served[client][-1] != "5":
                identity = 1000 * client + len(served[client])
                answer = await server.vision.Classify(classify_request(identity))
                assert answer.features[0] == identity
                served[client].append(answer.model.version)

        clients = [asyncio.create_task(keep_asking(client)) for client in range(len(served))]
        for number in "2345":
            await asyncio.to_thread(engines[f"{int(number) - 1}"].runs.acquire, timeout=30)
            repository.put(version(number), engines[number])
            server.rescan.set()
            await until_ready(server, number)
            assert all(engines[other].closed for other in engines if other < number)
        await asyncio.gather(*clients)
        assert not engines["5"].closed
    assert all(versions == sorted(versions) for versions in served)
    assert {*itertools.chain(*served)} == {*"12345"}
    assert engines["5"].closed


async def test_the_old_version_answers_what_it_accepted_before_it_is_closed(repository: FakeModelRepository) -> None:
    old, new = FakeEngine(), FakeEngine()
    repository.put(version("1"), old)
    async with running_server(repository=repository) as server:
        old.open.clear()
        accepted = [asyncio.ensure_future(server.vision.Classify(classify_request(0)))]
        await old.begun()
        accepted.append(asyncio.ensure_future(server.vision.Classify(classify_request(1))))
        await server.wait_for_metric('zfserve_queue_depth{model="fake",version="1"} 1.0')
        repository.put(version("2"), new)
        server.rescan.set()
        ready, retiring = pb.MODEL_STATE_READY, pb.MODEL_STATE_RETIRING
        await until(server, lambda listed: listed == [("fake", "2", ready), ("fake", "1", retiring)])
        assert await answered_by(server) == "fake 2"
        assert [old.closed, new.closed] == [False, False]
        old.open.set()
        assert {(await answer).model.version for answer in accepted} == {"1"}
        await until_ready(server, "2")
        assert old.closed
        assert 'version="1"' not in await server.wait_for_metric(
            'zfserve_model_loads_total{model="fake",result="ready"} 2.0'
        )


async def test_a_version_is_retiring_from_the_step_in_which_it_leaves_the_registry(
    repository: FakeModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[str, ModelState]]] = []

    class RecordingRegistry(ModelRegistry):
        def remove(self, model: ServedModel) -> None:
            super().remove(model)
            # It runs before any task that starts after this.
            asyncio.get_running_loop().call_soon(self._note)

        def _note(self) -> None:
            seen.append([(status.version, status.state) for status in self.statuses()])

    monkeypatch.setattr(app, "ModelRegistry", RecordingRegistry)
    repository.put(version("1"), FakeEngine())
    async with running_server(repository=repository) as server:
        repository.put(version("2"), FakeEngine())
        server.rescan.set()
        await until_ready(server, "2")
    assert seen == [[("2", ModelState.READY), ("1", ModelState.RETIRING)]]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BundleError("model.onnx in /repository/fake/2 differs from its digest"), "model.onnx in fake 2 differs"),
        (EngineUnavailable("/tmp/cache/a.plan: probabilities are 0.3 away from the golden ones"), "a.plan: prob"),
        (OSError(28, "No space left on device"), "cannot be read or written: No space left on device"),
        (ZeroDivisionError("/secret"), "unexpected error (ZeroDivisionError)"),
    ],
)
async def test_a_bad_version_is_refused_and_retried_when_its_files_have_changed(
    repository: FakeModelRepository, error: Exception, reason: str
) -> None:
    good = FakeEngine()
    repository.put(version("1"), good)
    async with running_server(repository=repository, reload_interval=0.01) as server:
        repository.put(version("2"), error=error)
        failed = [("fake", "2", pb.MODEL_STATE_FAILED), ("fake", "1", pb.MODEL_STATE_READY)]
        await until(server, lambda listed: listed == failed)
        described = await server.vision.DescribeModel(pb.DescribeModelRequest())
        assert (described.model.version, described.versions[0].version) == ("1", "2")
        assert reason in described.versions[0].reason
        assert "/" not in described.versions[0].reason
        await server.wait_for_metric('zfserve_model_refused{model="fake",version="2"} 1.0')
        scans = repository.scans
        await until(server, lambda _: repository.scans > scans + 3)
        assert repository.opened == [("fake", "1"), ("fake", "2")]
        assert await answered_by(server) == "fake 1"
        assert isinstance(await error_of(answered_by(server, version="2")), NotFound)
        repository.put(version("2"), FakeEngine())
        await until_ready(server, "2")
        assert good.closed
        assert "zfserve_model_refused{" not in await server.wait_for_metric('result="refused"} 1.0')


async def test_a_requested_rescan_retries_refused_versions(repository: FakeModelRepository) -> None:
    repository.put(version("1"), FakeEngine())
    async with running_server(repository=repository, reload_interval=0) as server:
        repository.put(version("2"), error=OSError(28, "No space left on device"))
        for _ in range(2):
            await rescan(server, repository)
        await until(server, lambda _: repository.opened.count(("fake", "2")) == 2)


async def test_removing_a_version_rolls_back_and_the_last_version_stays(repository: FakeModelRepository) -> None:
    first, second = FakeEngine(), FakeEngine()
    repository.put(version("1"), first)
    repository.put(version("2"), second)
    async with running_server(repository=repository) as server:
        assert await statuses(server) == [("fake", "2", pb.MODEL_STATE_READY)]
        assert repository.opened == [("fake", "2")]
        repository.remove(version("2"))
        server.rescan.set()
        await until_ready(server, "1")
        assert second.closed
        for fault in (None, OSError("the volume is gone")):
            repository.fault = fault
            if fault is None:
                repository.remove(version("1"))
            await rescan(server, repository)
            assert await answered_by(server) == "fake 1"
        assert not first.closed


async def test_a_version_replaced_in_place_takes_over_from_itself(repository: FakeModelRepository) -> None:
    before, after = FakeEngine(), FakeEngine()
    repository.put(version("1"), before)
    async with running_server(repository=repository) as server:
        repository.put(version("1", fingerprint="0" * 64), after)
        server.rescan.set()
        await until(server, lambda _: before.closed)
        assert (await server.vision.Classify(classify_request(3))).model.fingerprint == "0" * 64
        await until_ready(server, "1")
        assert not after.closed


async def test_a_version_in_two_folders_is_served_from_one(repository: FakeModelRepository) -> None:
    repository.put(version("1"), FakeEngine())
    repository.put(version("1"), FakeEngine(), folder="2")  # a copy whose manifest was not changed
    async with running_server(repository=repository, keep_versions=2) as server:
        assert repository.opened == [("fake", "1")]
        (status,) = (await server.vision.ListModels(pb.ListModelsRequest())).models
        assert (status.state, status.is_default) == (pb.MODEL_STATE_READY, True)
        assert "is in two folders" in status.reason


async def test_projections_in_flight_keep_their_version(repository: FakeModelRepository, tmp_path: Path) -> None:
    repository.put(version("1"), FakeEngine())
    address = f"unix:{tmp_path}/worker.sock"
    worker = FakeWorker(fingerprint=None, hangs_after=1)
    request = pb.ProjectRequest(image=classify_request(3).image, layer="conv1", strongest=2)
    async with (
        worker.listening(address),
        running_server(repository=repository, worker=True, worker_address=address) as server,
    ):
        await projection_is(server, serving=True)
        call = server.vision.Project(request)
        first = await call.read()
        assert isinstance(first, pb.ProjectResponse)
        assert first.model.version == "1"
        repository.put(version("2"), FakeEngine())
        await rescan(server, repository)
        await until(server, lambda listed: ("fake", "2", pb.MODEL_STATE_READY) in listed)
        assert ("fake", "1", pb.MODEL_STATE_RETIRING) in await statuses(server)
        assert len(worker.announced) == 2, "the worker must still hold the old version's network"
        call.cancel()
        await until_ready(server, "2")


async def test_the_server_is_healthy_again_once_a_working_version_replaces_one_that_stalls(
    repository: FakeModelRepository,
) -> None:
    stalled, may_open = FakeEngine(max_batch_size=1), threading.Event()

    def reopen() -> FakeEngine:
        may_open.wait(60)
        return FakeEngine()

    repository.reopen = reopen
    repository.put(version("1"), stalled)
    async with running_server(repository=repository, engine_timeout=0.2) as server:
        health = HealthStub(server.channel)

        async def until_health_is(status: int) -> None:
            async with asyncio.timeout(60):
                while (await health.Check(HealthCheckRequest())).status != status:
                    pass

        stalled.open.clear()
        calls = [asyncio.ensure_future(server.vision.Classify(classify_request(value))) for value in (1, 2)]
        await until_health_is(HealthCheckResponse.NOT_SERVING)
        repository.put(version("2"), FakeEngine())
        server.rescan.set()
        await until_health_is(HealthCheckResponse.SERVING)
        assert ("fake", "1", pb.MODEL_STATE_RETIRING) in await statuses(server)
        may_open.set()
        stalled.open.set()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_device_lost_while_a_version_is_loaded_ends_the_server(repository: FakeModelRepository) -> None:
    repository.put(version("1"), FakeEngine())
    async with running_server(repository=repository) as server:
        repository.put(version("2"), error=EngineLost("the card fell off the bus"))
        server.rescan.set()
        await asyncio.wait([server.ended])
        assert isinstance(server.ended.exception(), EngineLost)


async def test_a_reference_belongs_to_the_version_that_gave_it_out(
    repository: FakeModelRepository, tmp_path: Path
) -> None:
    small = version("1", "small", input=MANIFEST.input.model_copy(update={"height": 4, "width": 4}))
    repository.put(version("1"), FakeEngine())
    repository.put(small, FakeEngine())
    worker, address = FakeWorker(fingerprint=None), f"unix:{tmp_path}/worker.sock"
    async with (
        worker.listening(address),
        running_server(repository=repository, keep_versions=2, worker=True, worker_address=address) as server,
    ):
        await until(server, lambda _: {*worker.announced} == {version("1").fingerprint, small.fingerprint})
        first = (await server.vision.Classify(classify_request(3))).image_reference
        repository.put(version("2"), FakeEngine())
        server.rescan.set()
        await until(server, lambda listed: ("fake", "2", pb.MODEL_STATE_READY) in listed)

        def project(**selector: str) -> pb.ProjectRequest:
            image = pb.Image(reference=first)
            return pb.ProjectRequest(image=image, layer="conv1", strongest=1, model=pb.ModelSelector(**selector))

        (answer,) = [message async for message in server.vision.Project(project())]
        assert (answer.model.version, worker.requests[0].fingerprint) == ("1", version("1").fingerprint)
        for other in ({"name": "small"}, {"name": "fake"}):
            error = await error_of(server.vision.Project(project(**other)).read())
            assert isinstance(error, InvalidInput)
            assert (error.field, "was given out by fake 1" in error.message) == ("image.reference", True)
        classify = pb.ClassifyRequest(image=pb.Image(reference=first))
        assert (await server.vision.Classify(classify)).model.version == "1"
        repository.put(version("3"), FakeEngine())
        server.rescan.set()
        await until(server, lambda _: version("1").fingerprint not in worker.announced)
        error = await error_of(server.vision.Project(project()).read())
        assert isinstance(error, NotFound)
        assert "not served any more" in error.message
        newest = server.vision.Project(pb.ProjectRequest(image=raw_image(1), layer="conv1"))
        assert len([message async for message in newest]) == 6
