"""Explain is called through a real channel, with a fake worker."""

import asyncio
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import (
    FINGERPRINT,
    MANIFEST,
    SIDE,
    FakeEngine,
    FakeWorker,
    Running,
    classify_request,
    projection_is,
    raw_image,
    running_server,
)
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.errors import (
    EngineFailed,
    InvalidInput,
    NotFound,
    Overloaded,
    ServiceError,
    Unimplemented,
    WorkerMismatch,
    WorkerUnavailable,
)
from zfserve_runtime.grpc.status import from_call_error
from zfserve_server.requests.explanation import check_explanation

LAYER = MANIFEST.layers[0]


async def error_of(server: Running, request: pb.ExplainRequest, **options: float) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await server.vision.Explain(request, timeout=options.get("timeout"))
    error = from_call_error(failed.value)
    assert error is not None, failed.value
    assert error.status is failed.value.code()
    return error


async def test_an_explanation_shows_the_probabilities_of_the_worker_and_of_the_engine(
    paired_server: Running, worker: FakeWorker
) -> None:
    explained = await paired_server.vision.Explain(pb.ExplainRequest(image=raw_image(3), class_name="class 3"))
    assert (explained.for_class.index, explained.for_class.probability) == (3, 0.625)
    assert explained.served_probability == pytest.approx(0.55)
    assert explained.served_precision == "fp32"
    other = await paired_server.vision.Explain(pb.ExplainRequest(image=raw_image(3), class_name="class 4"))
    assert other.served_probability == pytest.approx(0.05)
    assert (explained.layer, explained.model.version) == ("conv1", "7")
    assert (explained.score, explained.baseline_score, explained.completeness_gap) == (3, -1.5, 0.125)
    assert (explained.heatmap.height, explained.heatmap.width) == (4, 4)
    assert np.frombuffer(explained.heatmap.data, "<f4").tolist() == [0.25] * 16
    assert (explained.overlay_png, explained.scale) == (b"png", 0.25)
    assert explained.method == pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS


async def test_the_worker_gets_the_request_of_the_client(paired_server: Running, worker: FakeWorker) -> None:
    request = pb.ExplainRequest(
        image=raw_image(300), layer="pool1", class_name="n4", method=pb.EXPLANATION_METHOD_GRAD_CAM
    )
    await paired_server.vision.Explain(request, timeout=20)
    assert worker.explain_requests == [
        worker_pb2.ExplainRequest(
            fingerprint=FINGERPRINT,
            pixels=request.image.raw.data,
            layer="pool1",
            class_name="n4",
            method=pb.EXPLANATION_METHOD_GRAD_CAM,
        )
    ]
    assert worker.remaining_s[0] is not None
    assert 0 < worker.remaining_s[0] < 30  # without a deadline it would be 120
    assert worker.request_ids[0]


async def test_the_source_box_covers_the_part_of_the_photo_that_was_seen(paired_server: Running) -> None:
    raw = pb.RawPixels(width=2 * SIDE, height=SIDE, data=b"\1" * (2 * SIDE * SIDE * 3))
    explained = await paired_server.vision.Explain(pb.ExplainRequest(image=pb.Image(raw=raw)))
    assert explained.source_box == pb.Box(left=0, top=0, right=2 * SIDE, bottom=SIDE)


async def test_a_reference_replaces_the_photo(paired_server: Running) -> None:
    classified = await paired_server.vision.Classify(classify_request(300))
    explained = await paired_server.vision.Explain(
        pb.ExplainRequest(image=pb.Image(reference=classified.image_reference))
    )
    assert explained.score == 1 + 44


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        (pb.ExplainRequest(layer="conv9"), NotFound, "layer"),
        (pb.ExplainRequest(class_name="violet"), NotFound, "class_name"),
        (pb.ExplainRequest(method=7), InvalidInput, "method"),  # type: ignore[arg-type]
    ],
)
async def test_an_invalid_request_is_refused_before_any_work(
    paired_server: Running, worker: FakeWorker, engine: FakeEngine, request_: pb.ExplainRequest, error: type, field: str
) -> None:
    asked = pb.ExplainRequest(image=raw_image(1))
    asked.MergeFrom(request_)
    answered = await error_of(paired_server, asked)
    assert type(answered) is error
    assert answered.field == field
    assert not worker.explain_requests
    assert not engine.batches


@pytest.mark.parametrize("source", [pb.Image(), pb.Image(encoded=b"junk"), pb.Image(reference="guess")])
async def test_bad_images(paired_server: Running, source: pb.Image) -> None:
    assert isinstance(await error_of(paired_server, pb.ExplainRequest(image=source)), InvalidInput | NotFound)


async def test_an_error_of_the_worker_reaches_the_client(paired_server: Running, worker: FakeWorker) -> None:
    worker.error = Overloaded("the worker is busy", retry_after_s=1.5)
    error = await error_of(paired_server, pb.ExplainRequest(image=raw_image(1)))
    assert (type(error), error.message, error.retry_after_s) == (Overloaded, "the worker is busy", 1.5)


async def test_a_worker_that_lacks_the_network_is_asked_again(paired_server: Running, worker: FakeWorker) -> None:
    worker.error = WorkerMismatch("other weights")
    assert type(await error_of(paired_server, pb.ExplainRequest(image=raw_image(1)))) is WorkerMismatch
    assert len(worker.explain_requests) == 3


async def test_an_unknown_failure_of_the_worker_is_not_passed_on(paired_server: Running, worker: FakeWorker) -> None:
    worker.error = RuntimeError("/secret/path")
    error = await error_of(paired_server, pb.ExplainRequest(image=raw_image(1)))
    assert error.status is grpc.StatusCode.INTERNAL
    assert "secret" not in error.message


async def test_an_engine_that_fails_cancels_the_workers_call(
    paired_server: Running, worker: FakeWorker, engine: FakeEngine
) -> None:
    worker.hangs_after = 0
    engine.poison = {1}
    engine.open.clear()
    failing = asyncio.ensure_future(error_of(paired_server, pb.ExplainRequest(image=raw_image(1))))
    await worker.asked.wait()
    engine.open.set()
    assert type(await failing) is EngineFailed
    await worker.cancelled.wait()


async def test_a_slow_worker_is_cancelled_at_the_deadline(paired_server: Running, worker: FakeWorker) -> None:
    worker.hangs_after = 0
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await paired_server.vision.Explain(pb.ExplainRequest(image=raw_image(1)), timeout=2)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await worker.cancelled.wait()


async def test_a_client_that_leaves_cancels_the_workers_call(paired_server: Running, worker: FakeWorker) -> None:
    worker.hangs_after = 0
    call = paired_server.vision.Explain(pb.ExplainRequest(image=raw_image(1)))
    await worker.asked.wait()
    call.cancel()
    await worker.cancelled.wait()


async def test_an_explanation_holds_no_place_of_a_classification_while_the_worker_computes(
    engine: FakeEngine, worker: FakeWorker, address: str
) -> None:
    worker.hangs_after = 0
    async with (
        worker.listening(address),
        running_server(engine, worker=True, worker_address=address, max_queue=1) as server,
    ):
        await projection_is(server, serving=True)
        call = server.vision.Explain(pb.ExplainRequest(image=raw_image(1)))
        await engine.begun()
        await worker.asked.wait()
        await server.wait_for_metric('zfserve_inference_seconds_count{model="fake",version="7"} 1.0')
        assert (await server.vision.Classify(classify_request(3))).features[0] == 3
        call.cancel()


async def test_a_full_engine_refuses_explanations(engine: FakeEngine, worker: FakeWorker, address: str) -> None:
    async with (
        worker.listening(address),
        running_server(engine, worker=True, worker_address=address, max_queue=1) as server,
    ):
        await projection_is(server, serving=True)
        engine.open.clear()
        classifying = asyncio.ensure_future(server.vision.Classify(classify_request(3)))
        await engine.begun()
        assert type(await error_of(server, pb.ExplainRequest(image=raw_image(1)))) is Overloaded
        engine.open.set()
        await classifying


async def test_stuck_explanations_are_limited_and_leave_classification_alone(
    paired_server: Running, worker: FakeWorker
) -> None:
    worker.hangs_after = 0
    request = pb.ExplainRequest(image=raw_image(1))
    stuck = [asyncio.ensure_future(paired_server.vision.Explain(request)) for _ in range(40)]
    done, _ = await asyncio.wait(stuck, return_when=asyncio.FIRST_COMPLETED)
    refused = next(iter(done)).exception()
    assert isinstance(refused, grpc.aio.AioRpcError)
    assert type(from_call_error(refused)) is Overloaded
    assert (await paired_server.vision.Classify(classify_request(3))).features[0] == 3
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_without_a_worker(server: Running, engine: FakeEngine) -> None:
    assert type(await error_of(server, pb.ExplainRequest(image=raw_image(1)))) is WorkerUnavailable
    assert not engine.batches


class OldWorker(FakeWorker):
    """Answers as a worker of release 0.1.0, which has no Explain and tells no release."""

    async def Explain(  # noqa: N802
        self, request: worker_pb2.ExplainRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> worker_pb2.ExplainResponse:
        self.explain_requests.append(request)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


async def test_a_worker_of_an_earlier_release_cannot_explain_but_projects(engine: FakeEngine, address: str) -> None:
    worker = OldWorker(release="")
    async with worker.listening(address), running_server(engine, worker=True, worker_address=address) as server:
        await projection_is(server, serving=True)
        error = await error_of(server, pb.ExplainRequest(image=raw_image(1)))
        assert type(error) is Unimplemented
        assert "earlier release" in error.message
        assert "upgrade the workers first" in error.message
        call = server.vision.Project(pb.ProjectRequest(image=raw_image(1), layer="last", strongest=1))
        [answer] = [message async for message in call]
        assert (answer.layer, answer.rule) == ("conv1", pb.PROJECTION_RULE_PAPER)


async def test_a_network_that_cannot_be_explained_names_the_node(
    engine: FakeEngine, address: str, repository: FakeModelRepository
) -> None:
    node = "the node 'blocks.0.attn' (Softmax) has no backward step"
    repository.put(MANIFEST.model_copy(update={"layers": (), "projection_obstacle": node}), engine)
    async with (
        FakeWorker().listening(address),
        running_server(repository=repository, worker=True, worker_address=address) as server,
    ):
        error = await error_of(server, pb.ExplainRequest(image=raw_image(1)))
        assert type(error) is Unimplemented
        assert node in error.message
        assert (await server.vision.Classify(classify_request(3))).features[0] == 3
        description = await server.vision.DescribeModel(pb.DescribeModelRequest())
        assert description.projection_obstacle == node


def explanation(change: Callable[[pb.ExplainResponse], object]) -> pb.ExplainResponse:
    """Returns an explanation by `LAYER` that makes sense, after `change` has changed it."""
    message = pb.ExplainResponse(
        for_class=pb.ClassScore(index=3, probability=0.5),
        heatmap=pb.HeatMap(height=4, width=4, data=np.zeros(16, "<f4").tobytes()),
        score=2.0,
        overlay_png=b"png",
    )
    change(message)
    return message


def test_an_answer_that_makes_sense_is_accepted() -> None:
    check_explanation(explanation(lambda message: None), LAYER, MANIFEST)


@pytest.mark.parametrize(
    "change",
    [
        lambda message: setattr(message.for_class, "index", 10),
        lambda message: setattr(message.for_class, "probability", float("nan")),
        lambda message: setattr(message.heatmap, "height", 5),
        lambda message: setattr(message.heatmap, "data", b"123"),
        lambda message: setattr(message.heatmap, "data", np.full(16, np.inf, "<f4").tobytes()),
        lambda message: setattr(message, "score", float("inf")),
        lambda message: setattr(message, "baseline_score", float("nan")),
        lambda message: setattr(message, "completeness_gap", float("nan")),
        lambda message: setattr(message, "scale", float("nan")),
        lambda message: message.ClearField("overlay_png"),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(change: Callable[[pb.ExplainResponse], object]) -> None:
    with pytest.raises(EngineFailed, match="makes no sense"):
        check_explanation(explanation(change), LAYER, MANIFEST)
