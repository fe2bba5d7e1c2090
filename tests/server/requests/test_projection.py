"""Project is called through a real channel, with a fake worker."""

import asyncio

import grpc
import pytest
from fakes.serving import (
    FINGERPRINT,
    SIDE,
    FakeEngine,
    FakeWorker,
    Running,
    classify_request,
    projection_is,
    raw_image,
    running_server,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_protos.methods import VISION_SERVICE, WORKER_SERVICE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import (
    InvalidInput,
    NotFound,
    OutOfRange,
    Overloaded,
    ServiceError,
    ShuttingDown,
    WorkerMismatch,
    WorkerUnavailable,
)
from zfserve_runtime.grpc.health import SERVER
from zfserve_runtime.grpc.status import from_call_error

SERVING = health_pb2.HealthCheckResponse.SERVING


async def project(server: Running, request: pb.ProjectRequest, **options: float) -> list[pb.ProjectResponse]:
    return [message async for message in server.vision.Project(request, timeout=options.get("timeout"))]


async def error_of(server: Running, request: pb.ProjectRequest) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await project(server, request)
    error = from_call_error(failed.value)
    assert error is not None, failed.value
    assert error.status is failed.value.code()
    return error


async def test_projections_arrive_one_by_one_with_their_place_in_the_photo(
    paired_server: Running, worker: FakeWorker
) -> None:
    raw = pb.RawPixels(width=2 * SIDE, height=SIDE, data=b"\1" * (2 * SIDE * SIDE * 3))
    worker.hangs_after = 1
    call = paired_server.vision.Project(pb.ProjectRequest(image=pb.Image(raw=raw), layer="conv1", strongest=2))
    first = await call.read()
    assert isinstance(first, pb.ProjectResponse)
    assert (first.map, first.rank, first.total, first.png) == (0, 0, 2, b"png")
    assert first.activation == SIDE * SIDE * 3
    assert first.box == pb.Box(left=2, top=0, right=4, bottom=8)
    assert first.source_box == pb.Box(left=4, top=0, right=8, bottom=8)
    call.cancel()


async def test_the_worker_gets_the_request_of_the_client(paired_server: Running, worker: FakeWorker) -> None:
    unit = pb.UnitRule(position=pb.Position(row=1, column=2))
    request = pb.ProjectRequest(
        image=raw_image(300),
        layer="pool1",
        selection=pb.MapSelection(indices=[5, 0]),
        unit=unit,
        format=pb.PICTURE_FORMAT_FLOAT32,
    )
    assert [answer.map for answer in await project(paired_server, request, timeout=20)] == [5, 0]
    [asked] = worker.requests
    assert (asked.fingerprint, asked.layer, list(asked.selection.indices)) == (FINGERPRINT, "pool1", [5, 0])
    assert (asked.unit, asked.format) == (unit, pb.PICTURE_FORMAT_FLOAT32)
    assert asked.pixels == request.image.raw.data
    assert worker.remaining_s[0] is not None
    assert 0 < worker.remaining_s[0] < 30  # without a deadline it would be 120
    assert worker.request_ids[0]


async def test_the_worker_gets_the_request_for_maps_of_a_class(paired_server: Running, worker: FakeWorker) -> None:
    for name, count, asked in (("class 1", 2, 2), ("n0", 1, 1), ("", 0, 6)):
        wanted = pb.ClassMaps(class_name=name, count=count)
        await project(paired_server, pb.ProjectRequest(image=raw_image(1), layer="conv1", for_class=wanted), timeout=20)
        assert worker.requests[-1].for_class == pb.ClassMaps(class_name=name, count=asked)


async def test_defaults(paired_server: Running, worker: FakeWorker) -> None:
    await project(paired_server, pb.ProjectRequest(image=raw_image(1), layer="conv1"))
    assert worker.requests[0].strongest == 6  # the default is nine, but the layer has six
    assert worker.requests[0].format == pb.PICTURE_FORMAT_PNG


@pytest.mark.parametrize("name", ["conv1", "stage1", "last"])
async def test_a_stage_or_last_names_a_layer(paired_server: Running, worker: FakeWorker, name: str) -> None:
    [answer] = await project(paired_server, pb.ProjectRequest(image=raw_image(1), layer=name, strongest=1))
    assert (answer.layer, answer.rule) == ("conv1", pb.PROJECTION_RULE_PAPER)
    assert worker.requests[0].layer == "conv1"


async def test_a_reference_replaces_the_photo(paired_server: Running, worker: FakeWorker) -> None:
    classified = await paired_server.vision.Classify(classify_request(300))
    image = pb.Image(reference=classified.image_reference)
    [answer] = await project(paired_server, pb.ProjectRequest(image=image, layer="conv1", strongest=1))
    assert answer.activation == 1 + 44
    assert answer.HasField("source_box")


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        pytest.param(pb.ProjectRequest(layer="conv9"), NotFound, "layer", id="layer"),
        pytest.param(pb.ProjectRequest(), NotFound, "layer", id="no layer"),
        pytest.param(
            pb.ProjectRequest(layer="conv1", selection=pb.MapSelection(indices=[0, 6])),
            OutOfRange,
            "selection.indices",
            id="map",
        ),
        pytest.param(
            pb.ProjectRequest(layer="conv1", selection=pb.MapSelection()),
            InvalidInput,
            "selection.indices",
            id="no maps",
        ),
        pytest.param(
            pb.ProjectRequest(layer="conv1", selection=pb.MapSelection(indices=[0] * 7)),
            InvalidInput,
            "selection.indices",
            id="many maps",
        ),
        pytest.param(
            pb.ProjectRequest(layer="conv1", for_class=pb.ClassMaps(class_name="violet")),
            NotFound,
            "for_class.class_name",
            id="class",
        ),
        pytest.param(
            pb.ProjectRequest(layer="conv1", for_class=pb.ClassMaps(count=7)),
            OutOfRange,
            "for_class.count",
            id="maps of a class",
        ),
        pytest.param(pb.ProjectRequest(layer="conv1", strongest=0), InvalidInput, "strongest", id="strongest 0"),
        pytest.param(pb.ProjectRequest(layer="conv1", strongest=7), OutOfRange, "strongest", id="strongest 7 of 6"),
        pytest.param(
            pb.ProjectRequest(layer="conv1", unit=pb.UnitRule(position=pb.Position(row=4))),
            OutOfRange,
            "unit.position",
            id="row",
        ),
        pytest.param(
            pb.ProjectRequest(layer="pool1", unit=pb.UnitRule(position=pb.Position(column=3))),
            OutOfRange,
            "unit.position",
            id="column",
        ),
        pytest.param(pb.ProjectRequest(layer="conv1", format=7), InvalidInput, "format", id="format"),  # type: ignore[arg-type]
    ],
)
async def test_an_invalid_projection_is_refused_and_named(
    paired_server: Running, worker: FakeWorker, request_: pb.ProjectRequest, error: type[ServiceError], field: str
) -> None:
    asked = pb.ProjectRequest(image=raw_image(1))
    asked.MergeFrom(request_)
    answered = await error_of(paired_server, asked)
    assert type(answered) is error
    assert answered.field == field
    assert not worker.requests


@pytest.mark.parametrize("source", [pb.Image(), pb.Image(encoded=b"junk"), pb.Image(reference="guess")])
async def test_bad_images(paired_server: Running, source: pb.Image) -> None:
    assert isinstance(
        await error_of(paired_server, pb.ProjectRequest(image=source, layer="conv1")), InvalidInput | NotFound
    )


@pytest.mark.parametrize(
    ("raised", "answered"),
    [
        (Overloaded("the worker is busy", retry_after_s=1.5), Overloaded("the worker is busy", retry_after_s=1.5)),
        (OutOfRange("no such map", field="selection.indices"), OutOfRange("no such map", field="selection.indices")),
        (WorkerMismatch("other weights"), WorkerMismatch("other weights")),
        (ShuttingDown("bye"), WorkerUnavailable("", retry_after_s=2.0)),
    ],
)
async def test_errors_of_the_worker_reach_the_client(
    paired_server: Running, worker: FakeWorker, raised: ServiceError, answered: ServiceError
) -> None:
    worker.error = raised
    error = await error_of(paired_server, pb.ProjectRequest(image=raw_image(1), layer="conv1"))
    assert type(error) is type(answered)
    assert (error.field, error.retry_after_s) == (answered.field, answered.retry_after_s)
    assert error.message.startswith(answered.message)


async def test_an_unknown_failure_of_the_worker_is_not_passed_on(paired_server: Running, worker: FakeWorker) -> None:
    worker.error = RuntimeError("/secret/path")
    error = await error_of(paired_server, pb.ProjectRequest(image=raw_image(1), layer="conv1"))
    assert error.status is grpc.StatusCode.INTERNAL
    assert "secret" not in error.message


async def test_a_slow_worker_is_cancelled_at_the_deadline(paired_server: Running, worker: FakeWorker) -> None:
    worker.hangs_after = 0
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await project(paired_server, pb.ProjectRequest(image=raw_image(1), layer="conv1"), timeout=2)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await worker.cancelled.wait()


async def test_a_client_that_leaves_cancels_the_workers_call(paired_server: Running, worker: FakeWorker) -> None:
    worker.hangs_after = 1
    call = paired_server.vision.Project(pb.ProjectRequest(image=raw_image(1), layer="conv1"))
    await call.read()
    call.cancel()
    await worker.cancelled.wait()


async def test_without_a_worker(server: Running) -> None:
    error = await error_of(server, pb.ProjectRequest(image=raw_image(1), layer="conv1"))
    assert type(error) is WorkerUnavailable
    assert error.retry_after_s is None


async def test_projections_return_when_the_worker_does(engine: FakeEngine, address: str) -> None:
    request = pb.ProjectRequest(image=raw_image(1), layer="conv1", strongest=1)
    async with running_server(engine, worker=True, worker_address=address) as server:
        error = await error_of(server, request)
        assert type(error) is WorkerUnavailable
        assert error.retry_after_s == 2.0
        for _ in range(2):  # the second time it dies and comes back
            async with FakeWorker().listening(address):
                await projection_is(server, serving=True)
                assert len(await project(server, request)) == 1
            await projection_is(server, serving=False)
            assert type(await error_of(server, request)) is WorkerUnavailable
            assert (await server.vision.Classify(classify_request(3))).features[0] == 3
            health = health_pb2_grpc.HealthStub(server.channel)
            for service in (SERVER, VISION_SERVICE):
                status = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert status.status == SERVING


async def test_a_worker_that_dies_during_a_projection(engine: FakeEngine, address: str) -> None:
    worker = FakeWorker(hangs_after=1)
    async with running_server(engine, worker=True, worker_address=address) as server:
        async with worker.listening(address):
            await projection_is(server, serving=True)
            call = server.vision.Project(pb.ProjectRequest(image=raw_image(1), layer="conv1"))
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        error = from_call_error(failed.value)
        assert type(error) is WorkerUnavailable
        assert error.retry_after_s == 2.0


async def test_a_worker_with_other_weights_is_refused(engine: FakeEngine, address: str) -> None:
    worker = FakeWorker(fingerprint="e" * 64)
    async with worker.listening(address), running_server(engine, worker=True, worker_address=address) as server:
        request = pb.ProjectRequest(image=raw_image(1), layer="conv1")
        while type(error := await error_of(server, request)) is WorkerUnavailable:
            pass  # the server has not asked the worker yet
        assert type(error) is WorkerMismatch
        assert not worker.requests
        assert not (await server.vision.DescribeModel(pb.DescribeModelRequest())).projection_available
        assert (await server.vision.Classify(classify_request(3))).features[0] == 3


async def test_a_worker_whose_health_is_not_serving(paired_server: Running, worker: FakeWorker) -> None:
    assert (await paired_server.vision.DescribeModel(pb.DescribeModelRequest())).projection_available
    worker.health.not_serving(WORKER_SERVICE)
    await projection_is(paired_server, serving=False)
    error = await error_of(paired_server, pb.ProjectRequest(image=raw_image(1), layer="conv1"))
    assert type(error) is WorkerUnavailable
    worker.health.serving(WORKER_SERVICE)
    await projection_is(paired_server, serving=True)


async def test_a_stuck_worker_leaves_classification_alone(paired_server: Running, worker: FakeWorker) -> None:
    worker.hangs_after = 0
    request = pb.ProjectRequest(image=raw_image(1), layer="conv1")
    stuck = [asyncio.ensure_future(project(paired_server, request)) for _ in range(40)]
    done, _ = await asyncio.wait(stuck, return_when=asyncio.FIRST_COMPLETED)
    refused = next(iter(done)).exception()
    assert isinstance(refused, grpc.aio.AioRpcError)
    assert type(from_call_error(refused)) is Overloaded
    assert (await paired_server.vision.Classify(classify_request(3))).features[0] == 3
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)
