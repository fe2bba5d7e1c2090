"""Tests the worker over a real channel, as the server calls it, with the real deconvnet."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_protos.methods import WORKER_SERVICE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime import errors
from zfserve_runtime.bundle import Bundle, Manifest
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.grpc.shutdown import StopRequest
from zfserve_runtime.grpc.status import from_call_error
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_worker.app import serve
from zfserve_worker.config import WorkerConfig
from zfserve_worker.network_cache import NetworkCache
from zfserve_worker.service import WorkerService
from zfserve_worker.torch_thread import TorchThread

RequestFor = Callable[..., worker_pb2.ProjectRequest]
ExplainRequestFor = Callable[..., worker_pb2.ExplainRequest]


@dataclass(frozen=True)
class RunningWorker:
    address: str
    channel: grpc.aio.Channel
    stub: Any
    stop: StopRequest


StartWorker = Callable[..., AbstractAsyncContextManager[RunningWorker]]


@pytest.fixture
def start_worker(bundle: Bundle) -> StartWorker:
    """Returns a context manager that serves `bundle` on a free port. Keywords change the settings."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[RunningWorker]:
        fields = {"model": (bundle.folder,), "listen": "localhost:0", "threads": 1, "queue": 4, "cache": 2}
        config = WorkerConfig.model_validate(fields | {"drain_delay": 0, "drain_grace": 10} | changes)
        stop, ready = StopRequest(), asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(serve(config, stop, ready))
        await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await serving
        async with grpc.aio.insecure_channel(ready.result()) as channel:
            yield RunningWorker(ready.result(), channel, worker_pb2_grpc.WorkerServiceStub(channel), stop)
        stop.ask("the test is over")
        await serving

    return start


@pytest.fixture
async def worker(start_worker: StartWorker) -> AsyncIterator[RunningWorker]:
    async with start_worker() as running:
        yield running


async def project(
    worker: RunningWorker, request: worker_pb2.ProjectRequest, **options: Any
) -> list[pb.ProjectResponse]:
    return [message.projection async for message in worker.stub.Project(request, **options)]


async def failure_of(worker: RunningWorker, request: worker_pb2.ProjectRequest, **options: Any) -> errors.ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await project(worker, request, **options)
    error = from_call_error(caught.value)
    assert error is not None, f"the status does not come from zfserve: {caught.value}"
    assert error.status is caught.value.code()
    return error


async def test_describe_names_the_network(worker: RunningWorker, bundle: Bundle) -> None:
    (model,) = (await worker.stub.Describe(worker_pb2.DescribeRequest())).models
    assert (model.name, model.version, model.fingerprint) == ("tiny", "1", bundle.manifest.fingerprint)


async def test_two_networks_are_loaded_and_told_apart_by_their_weights(
    start_worker: StartWorker, bundle: Bundle, other_bundle: Bundle, request_for: RequestFor
) -> None:
    fingerprints = [bundle.manifest.fingerprint, other_bundle.manifest.fingerprint]
    async with start_worker(model=(bundle.folder, other_bundle.folder), spare_networks=0) as worker:
        answer = await worker.stub.Describe(worker_pb2.DescribeRequest(fingerprints=fingerprints))
        assert {model.fingerprint for model in answer.models} == {*fingerprints}
        answers = [
            (await project(worker, request_for(fingerprint=fingerprint, strongest=1)))[0]
            for fingerprint in fingerprints
        ]
        assert [answer.model.version for answer in answers] == ["1", "2"]
        assert answers[0].activation != answers[1].activation


async def test_health_is_serving_and_ends_with_the_process(start_worker: StartWorker) -> None:
    async with start_worker() as worker:
        watching = health_pb2_grpc.HealthStub(worker.channel).Watch(
            health_pb2.HealthCheckRequest(service=WORKER_SERVICE)
        )
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_stopping_worker_accepts_calls_until_the_drain_delay_is_over(
    start_worker: StartWorker, request_for: RequestFor
) -> None:
    async with start_worker(drain_delay=60.0) as worker:
        watching = health_pb2_grpc.HealthStub(worker.channel).Watch(
            health_pb2.HealthCheckRequest(service=WORKER_SERVICE)
        )
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        worker.stop.ask("SIGTERM")
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert len(await project(worker, request_for(strongest=1))) == 1


@pytest.mark.parametrize("layer", ["stem", "stage1", "stage2", "last"])
async def test_every_layer_can_be_projected(worker: RunningWorker, request_for: RequestFor, layer: str) -> None:
    answers = await project(worker, request_for(layer=layer, strongest=2))
    assert [(answer.rank, answer.total) for answer in answers] == [(0, 2), (1, 2)]
    assert answers[0].activation >= answers[1].activation
    assert all(answer.png and answer.patch_png for answer in answers)


@pytest.mark.parametrize(
    ("fields", "error_class", "field"),
    [
        ({"layer": "conv9"}, errors.NotFound, "layer"),
        ({"layer": ""}, errors.NotFound, "layer"),
        ({"selection": {"indices": [0, 12]}}, errors.OutOfRange, "selection.indices"),
        ({"selection": {"indices": []}}, errors.InvalidInput, "selection.indices"),
        ({"selection": {"indices": [0] * 13}}, errors.InvalidInput, "selection.indices"),
        ({"strongest": 0}, errors.InvalidInput, "strongest"),
        ({"strongest": 13}, errors.OutOfRange, "strongest"),
        ({"unit": {"position": {"row": 10, "column": 0}}}, errors.OutOfRange, "unit.position"),
        ({"unit": {"position": {"row": 0, "column": 12}}}, errors.OutOfRange, "unit.position"),
        ({"format": 17}, errors.InvalidInput, "format"),
        ({"pixels": b"\0" * 7}, errors.InvalidInput, "pixels"),
        ({"fingerprint": "cd" * 32}, errors.WorkerMismatch, None),
    ],
)
async def test_a_request_that_does_not_fit_the_network_is_refused(
    worker: RunningWorker,
    request_for: RequestFor,
    fields: dict[str, Any],
    error_class: type[errors.ServiceError],
    field: str | None,
) -> None:
    error = await failure_of(worker, request_for(**fields))
    assert type(error) is error_class
    assert error.field == field


async def test_an_explanation_is_answered(worker: RunningWorker, explain_request_for: ExplainRequestFor) -> None:
    answer = (await worker.stub.Explain(explain_request_for(class_name="dog"))).explanation
    assert (answer.layer, answer.for_class.label, len(answer.heatmap.data)) == ("stage2", "dog", 4 * 10 * 12)
    assert answer.overlay_png


@pytest.mark.parametrize(
    ("fields", "error_class", "field"),
    [
        ({"layer": "conv9"}, errors.NotFound, "layer"),
        ({"class_name": "violet"}, errors.NotFound, "class_name"),
        ({"method": 9}, errors.InvalidInput, "method"),
        ({"pixels": b"\0" * 7}, errors.InvalidInput, "pixels"),
        ({"fingerprint": "cd" * 32}, errors.WorkerMismatch, None),
    ],
)
async def test_an_explanation_that_does_not_fit_the_network_is_refused(
    worker: RunningWorker,
    explain_request_for: ExplainRequestFor,
    fields: dict[str, Any],
    error_class: type[errors.ServiceError],
    field: str | None,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker.stub.Explain(explain_request_for(**fields))
    error = from_call_error(caught.value)
    assert error is not None
    assert (type(error), error.field) == (error_class, field)


async def test_the_last_map_and_unit_are_in_range(worker: RunningWorker, request_for: RequestFor) -> None:
    last = {"position": {"row": 9, "column": 11}}
    (answer,) = await project(worker, request_for(selection={"indices": [11]}, unit=last))
    assert (answer.map, answer.unit.row, answer.unit.column) == (11, 9, 11)


async def test_a_call_beyond_the_queue_is_refused_with_a_delay(
    start_worker: StartWorker, request_for: RequestFor
) -> None:
    # A message has 370 kB, more than the channel takes without a reader. So the call stays in flight.
    large = {"layer": "stage1", "unit": {"whole_map": {}}, "format": "PICTURE_FORMAT_FLOAT32"}
    async with start_worker(queue=1) as worker:
        in_flight = aiter(worker.stub.Project(request_for(strongest=5, **large)))
        await anext(in_flight)
        error = await failure_of(worker, request_for())
        assert type(error) is errors.Overloaded
        assert error.retry_after_s == 1
        assert len([message async for message in in_flight]) == 4
        assert len(await project(worker, request_for(strongest=1))) == 1


class EndlessProjector:
    """Yields responses for ever. Sets `ended` when its generator is closed."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.ended, self.explaining = asyncio.Event(), asyncio.Event()
        self.metrics = Metrics().of_model("tiny", "1")
        self._loop = asyncio.get_running_loop()

    def project(self, request: worker_pb2.ProjectRequest) -> Generator[pb.ProjectResponse, None, None]:
        try:
            while True:
                yield pb.ProjectResponse()
        finally:
            self._loop.call_soon_threadsafe(self.ended.set)

    def explain(self, request: worker_pb2.ExplainRequest) -> Generator[pb.ExplainResponse | None, None, None]:
        self._loop.call_soon_threadsafe(self.explaining.set)
        try:
            while True:
                yield None
        finally:
            self._loop.call_soon_threadsafe(self.ended.set)


@dataclass
class OneNetwork:
    """Stands in for `NetworkCache`. Returns the same projector for each fingerprint."""

    projector: EndlessProjector

    async def find(self, fingerprint: str) -> EndlessProjector:
        return self.projector


@pytest.mark.parametrize("method", ["Project", "Explain"])
async def test_a_cancelled_call_ends_the_work(
    bundle: Bundle, request_for: RequestFor, explain_request_for: ExplainRequestFor, method: str
) -> None:
    metrics, projector = Metrics(), EndlessProjector(bundle.manifest)
    torch_thread = TorchThread(1, 1)
    server = InterceptingServer(metrics)
    service = WorkerService(cast("NetworkCache", OneNetwork(projector)), torch_thread)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        if method == "Project":
            call = stub.Project(request_for())
            await call.read()
        else:
            call = stub.Explain(explain_request_for())
            await projector.explaining.wait()
        call.cancel()
        await projector.ended.wait()
    await server.stop(None)
    torch_thread.close()


async def test_a_deadline_ends_the_work(worker: RunningWorker, request_for: RequestFor) -> None:
    whole = request_for(strongest=12, unit={"whole_map": {}})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await project(worker, whole, timeout=0.01)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(await project(worker, request_for(strongest=1), timeout=60)) == 1


async def test_concurrent_calls_each_get_their_own_projections(worker: RunningWorker, request_for: RequestFor) -> None:
    layers = ["stem", "stage1", "stage2"]
    together = await asyncio.gather(*(project(worker, request_for(layer=layer, strongest=4)) for layer in layers))
    alone = [await project(worker, request_for(layer=layer, strongest=4)) for layer in layers]
    assert together == alone
