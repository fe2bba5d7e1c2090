"""Tests activations, occlusion, ablation and transformation of both clients against a fake service."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any

import grpc
import pytest
from fakes.pictures import png
from fakes.study_answers import occlusion_messages
from fakes.vision_service import Failure, FakeVisionService
from zfserve import (
    AsyncClient,
    Box,
    Cancelled,
    ClassScore,
    Client,
    Computation,
    FeatureDistance,
    ImageReference,
    InvalidInput,
    ModelIdentity,
    NotFound,
    Occlusion,
    Overloaded,
    Position,
    ServerFailed,
    ZfserveError,
)
from zfserve.study_replies import TransformReplies, occlusion_update
from zfserve_protos.v1 import zfserve_pb2 as pb

Ask = Callable[..., Any]

CHURCH = ClassScore("church", "n1", 1, 0.75)
COMPUTATION = Computation("int8", "openvino")
MODEL = ModelIdentity("zfnet", "3", "ab12")

CALLS: dict[str, tuple[Any, ...]] = {
    "activations": ([b"1"], "last"),
    "occlude": (b"1",),
    "ablate": (b"1",),
    "transform": (b"1", "rotation"),
}
"""Maps each method that streams to the arguments of a call that succeeds."""


def test_the_strongest_units_of_layers(ask: Ask, address: str, service: FakeVisionService) -> None:
    first, second = ask(address, "activations", [b"1", ImageReference("r")], ["conv1", "last"])
    assert (first.image, second.image) == (0, 1)
    assert (first.best, first.computation, first.model) == (CHURCH, COMPUTATION, MODEL)
    assert list(first.layers) == ["conv1", "relu5"]
    layer = second.layers["relu5"]
    assert (layer.layer, layer.maps, layer.height, layer.width) == ("relu5", 3, 1, 1)
    assert list(layer.values) == [100.0, 110.0, 120.0]
    assert layer.positions == (Position(0, 7), Position(1, 7), Position(2, 7))
    assert (layer.rows, layer.columns) == ((0, 1, 2), (7, 7, 7))
    (request,) = service.study_requests
    assert isinstance(request, pb.ActivationsRequest)
    assert [image.WhichOneof("source") for image in request.images] == ["encoded", "reference"]
    assert (list(request.layers), request.form) == (["conv1", "last"], pb.ACTIVATION_FORM_STRONGEST)


def test_whole_maps_are_joined(ask: Ask, address: str) -> None:
    (photo,) = ask(address, "activations", [b"1"], "conv1", form="maps")
    layer = photo.layers["conv1"]
    assert list(layer.values) == [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0, 20.0, 21.0, 22.0, 23.0]
    assert layer.to_numpy().shape == (3, 2, 2)
    assert layer.to_numpy()[2, 1].tolist() == [22.0, 23.0]
    assert layer.positions is None


def test_maps_on_a_grid(ask: Ask, address: str, service: FakeVisionService) -> None:
    (photo,) = ask(address, "activations", [b"1"], ["conv1"], form="grid", grid=(1, 3))
    layer = photo.layers["conv1"]
    assert (layer.maps, layer.height, layer.width) == (3, 1, 3)
    assert list(layer.values)[:4] == [0.0, 1.0, 2.0, 10.0]
    request = service.study_requests[0]
    assert isinstance(request, pb.ActivationsRequest)
    assert (request.form, request.grid_height, request.grid_width) == (pb.ACTIVATION_FORM_GRID, 1, 3)


def test_a_layer_that_is_named_twice_comes_once(ask: Ask, address: str) -> None:
    (photo,) = ask(address, "activations", [b"1"], ["last", "relu5"])
    assert {name: layer.maps for name, layer in photo.layers.items()} == {"relu5": 3}


def test_occlude_yields_the_plan_then_places(ask: Ask, address: str, service: FakeVisionService) -> None:
    first, coarse, fine = ask(address, "occlude", b"1", size=12, stride=16, class_name="bee", map=7, layer="conv4")
    plan = first.plan
    assert (plan.tops, plan.lefts, plan.size) == ((0, 16, 20), (0, 16), 12)
    assert (plan.for_class, plan.best) == (ClassScore("bee", "n1", 1, 0.75), CHURCH)
    assert (plan.layer, plan.map, plan.map_sum, plan.unit, plan.activation) == ("conv4", 7, 8.0, Position(3, 4), 2.5)
    assert (plan.computation, plan.model, plan.source_box) == (COMPUTATION, MODEL, Box(0, 0, 64, 64))
    assert (first.sequence, first.total_places, first.done_places, first.rows) == (0, 6, 0, ())
    assert (coarse.plan, coarse.summary, coarse.spacing) == (None, None, 2)
    assert (coarse.rows, coarse.columns, coarse.probabilities) == ((0, 2), (0, 0), (0.0, 0.5))
    assert (coarse.best_classes, coarse.map_sums) == ((0, 4), (-0.0, -4.0))
    assert (fine.sequence, fine.done_places, fine.spacing) == (2, 6, 1)
    assert (fine.summary.box, fine.summary.source_box) == (Box(0, 0, 12, 12), Box(0, 0, 24, 24))
    assert (fine.summary.map_box, fine.summary.map_source_box) == (Box(16, 20, 28, 32), Box(32, 40, 56, 64))
    assert (fine.summary.probability, fine.summary.map_sum) == (0.0, -5.0)
    request = service.study_requests[0]
    assert isinstance(request, pb.OccludeRequest)
    assert (request.size, request.stride, request.class_name, request.layer, request.map) == (12, 16, "bee", "conv4", 7)
    assert (request.colour.red, request.colour.green, request.colour.blue) == (128, 128, 128)


def test_occlusion_returns_grids(ask: Ask, address: str, service: FakeVisionService) -> None:
    answer = ask(address, "occlusion", ImageReference("r"))
    assert answer.probabilities == ((0.0, 0.125), (0.25, 0.375), (0.5, 0.625))
    assert answer.best_classes == ((0, 1), (2, 3), (4, 5))
    assert answer.map_sums == ((0.0, -1.0), (-2.0, -3.0), (-4.0, -5.0))
    assert (answer.plan.layer, answer.plan.map) == ("relu5", 5)
    assert (answer.plan.source_box, answer.summary.source_box, answer.summary.map_source_box) == (None, None, None)
    request = service.study_requests[0]
    assert isinstance(request, pb.OccludeRequest)
    assert (request.size, request.stride, request.layer) == (0, 0, "")
    assert not request.HasField("map")


def test_a_network_without_a_layer_has_no_map() -> None:
    responses = list(occlusion_messages(pb.OccludeRequest(image=pb.Image(encoded=b"1"))))
    responses[0].plan.ClearField("unit")
    responses[0].plan.layer = ""
    responses[-1].summary.ClearField("map_box")
    responses[-1].summary.ClearField("map_source_box")
    for response in responses:
        response.ClearField("map_sums")
    answer = Occlusion.from_updates(map(occlusion_update, responses))
    assert (answer.plan.layer, answer.plan.map, answer.plan.unit) == ("", None, None)
    assert (answer.map_sums, answer.summary.map_box, answer.summary.map_source_box) == ((), None, None)
    assert answer.probabilities == ((0.0, 0.125), (0.25, 0.375), (0.5, 0.625))
    step = TransformReplies()(pb.TransformResponse(rank=0, total=1))
    assert (step.low, step.high) == (None, None)


def test_an_occlusion_needs_all_updates(address: str) -> None:
    with Client(address) as client:
        updates = list(client.occlude(b"1"))
    first, coarse, fine = updates
    assert Occlusion.from_updates(iter(updates)).plan == first.plan
    for lacking in ([first, fine], [coarse, fine], [first, coarse], [first, coarse, replace(fine, summary=None)]):
        with pytest.raises(ValueError, match="an update is missing"):
            Occlusion.from_updates(lacking)


def test_ablation_of_groups(ask: Ask, address: str, service: FakeVisionService) -> None:
    first, second = ask(address, "ablate", b"1", "conv3", groups=[4, (1, 2)], replacement=[0.5, 0.25])
    assert (first.rank, first.total, first.maps, second.rank, second.maps) == (0, 2, (4,), 1, (1, 2))
    assert (second.alone, second.cumulative, second.untouched) == ((0.25, 0.75), (0.625, 0.375), (0.125, 0.875))
    assert (second.attribution, second.for_class) == (None, None)
    assert (second.layer, second.computation, second.model) == ("conv3", COMPUTATION, MODEL)
    request = service.study_requests[0]
    assert isinstance(request, pb.AblateRequest)
    assert [list(group.indices) for group in request.groups.groups] == [[4], [1, 2]]
    assert (request.replacement, list(request.values)) == (pb.ABLATION_REPLACEMENT_VALUES, [0.5, 0.25])


def test_ablation_of_the_maps_of_a_class(ask: Ask, address: str, service: FakeVisionService) -> None:
    first, second = ask(address, "ablate", b"1", strongest=2, for_class="", replacement="mean")
    assert (first.attribution, second.attribution) == (0.25, -0.25)
    assert second.for_class == CHURCH
    request = service.study_requests[0]
    assert isinstance(request, pb.AblateRequest)
    assert (request.WhichOneof("maps"), request.for_class.count, request.for_class.class_name) == ("for_class", 2, "")
    assert (request.layer, request.replacement) == ("last", pb.ABLATION_REPLACEMENT_MEAN)


def test_ablation_of_the_strongest_maps(ask: Ask, address: str, service: FakeVisionService) -> None:
    assert len(ask(address, "ablate", b"1")) == 9
    request = service.study_requests[0]
    assert isinstance(request, pb.AblateRequest)
    assert (request.strongest, request.replacement) == (9, pb.ABLATION_REPLACEMENT_ZERO)


def test_a_transformation(ask: Ask, address: str, service: FakeVisionService) -> None:
    first, second = ask(
        address,
        "transform",
        b"1",
        "scale",
        steps=[1, 1.5],
        class_name="tench",
        low_layer="conv2",
        border="edge",
        resampling="bicubic",
        pictures=True,
    )
    assert (first.rank, first.total, first.step, second.rank, second.step) == (0, 2, 1.0, 1, 1.5)
    assert (second.for_class, second.best, second.untouched) == (ClassScore("tench", "n0", 0, 0.5), CHURCH, CHURCH)
    assert second.low == FeatureDistance("conv2", 3.0, 0.25)
    assert second.high == FeatureDistance("features", 1.0, 0.125)
    assert (second.kind, second.border, second.resampling) == ("scale", "edge", "bicubic")
    assert (second.computation, second.model, second.picture_png) == (COMPUTATION, MODEL, png((10, 20, 30)))
    request = service.study_requests[0]
    assert isinstance(request, pb.TransformRequest)
    assert (request.kind, list(request.steps), request.class_name) == (pb.TRANSFORM_KIND_SCALE, [1.0, 1.5], "tench")
    assert (request.border, request.resampling) == (pb.BORDER_EDGE, pb.RESAMPLING_BICUBIC)


def test_a_transformation_by_default(ask: Ask, address: str, service: FakeVisionService) -> None:
    first, _ = ask(address, "transform", b"1", "hue")
    assert (first.picture_png, first.border, first.resampling) == (None, "grey", "bilinear")
    request = service.study_requests[0]
    assert isinstance(request, pb.TransformRequest)
    assert (len(request.steps), request.include_pictures) == (0, False)


@pytest.mark.parametrize("method", CALLS)
def test_a_study_names_its_model(ask: Ask, address: str, service: FakeVisionService, method: str) -> None:
    ask(address, method, *CALLS[method], model="birds", version="2")
    assert service.study_requests[0].model == pb.ModelSelector(name="birds", version="2")


@pytest.mark.parametrize("method", CALLS)
def test_the_priority_of_a_study_is_left_to_the_client(
    ask: Ask, address: str, service: FakeVisionService, method: str
) -> None:
    ask(address, method, *CALLS[method])
    ask(address, method, *CALLS[method], client={"priority": "bulk"})
    assert [metadata.get("x-priority") for metadata in service.metadata] == [None, "bulk"]


@pytest.mark.parametrize("method", CALLS)
def test_a_study_that_is_refused_is_sent_again(ask: Ask, address: str, service: FakeVisionService, method: str) -> None:
    service.failures = [
        Failure(grpc.StatusCode.UNAVAILABLE),
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=1),
    ]
    assert ask(address, method, *CALLS[method])
    assert len(service.metadata) == 3


@pytest.mark.parametrize("method", CALLS)
def test_a_study_that_stays_refused_says_when_to_retry(
    ask: Ask, address: str, service: FakeVisionService, method: str
) -> None:
    service.failures = [
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.25, pushback_ms=1)
    ] * 4
    with pytest.raises(Overloaded) as caught:
        ask(address, method, *CALLS[method])
    assert caught.value.retry_after_s == 0.25


@pytest.mark.parametrize("method", CALLS)
def test_a_study_that_has_begun_is_not_sent_again(
    ask: Ask, address: str, service: FakeVisionService, method: str
) -> None:
    service.late_failures = [Failure(grpc.StatusCode.UNAVAILABLE, "the server stops.", "STOPPING")]
    with pytest.raises(ZfserveError, match="the server stops"):
        ask(address, method, *CALLS[method])
    assert len(service.metadata) == 1


@pytest.mark.parametrize(
    ("code", "kind"), [(grpc.StatusCode.NOT_FOUND, NotFound), (grpc.StatusCode.INTERNAL, ServerFailed)]
)
@pytest.mark.parametrize("method", [*CALLS, "occlusion"])
def test_a_study_that_fails_raises_its_error(
    ask: Ask, address: str, service: FakeVisionService, method: str, code: grpc.StatusCode, kind: type[ZfserveError]
) -> None:
    service.failures = [Failure(code, "Do this.", "SOME_REASON", "layer")]
    with pytest.raises(kind) as caught:
        ask(address, method, *CALLS.get(method, (b"1",)))
    assert (caught.value.message, caught.value.reason, caught.value.field) == ("Do this.", "SOME_REASON", "layer")


HELD = [name for name in CALLS if name != "activations"]
"""These methods yield a result for the first message. The fake service holds the others."""


@pytest.mark.parametrize("method", HELD)
def test_closing_a_study_stops_the_work(address: str, service: FakeVisionService, method: str) -> None:
    service.open.clear()
    with Client(address) as client:
        with closing(getattr(client, method)(*CALLS[method])) as results:
            next(results)
        assert service.cancelled.wait(timeout=30)
        assert not service.open.is_set()


@pytest.mark.parametrize("method", HELD)
def test_closing_an_async_study_stops_the_work(address: str, service: FakeVisionService, method: str) -> None:
    async def take_one() -> None:
        async with AsyncClient(address) as client:
            async with aclosing(getattr(client, method)(*CALLS[method])) as results:
                await anext(results)
            assert await asyncio.to_thread(service.cancelled.wait, 30)

    service.open.clear()
    asyncio.run(take_one())
    assert not service.open.is_set()


def test_closing_the_client_ends_a_study(address: str, service: FakeVisionService) -> None:
    service.open.clear()
    client = Client(address)
    updates = client.occlude(b"1")
    assert next(updates).plan is not None
    client.close()
    with pytest.raises(Cancelled):
        next(updates)
    with pytest.raises(Cancelled, match="the client is closed"):
        next(client.occlude(b"1"))


def test_the_sync_client_finds_wrong_arguments_before_the_generator_is_read(address: str) -> None:
    with Client(address) as client, pytest.raises(InvalidInput):
        client.occlude(b"1", stride=0)


@pytest.mark.parametrize("method", CALLS)
def test_a_photo_that_cannot_be_read_is_not_sent(
    ask: Ask, address: str, service: FakeVisionService, method: str
) -> None:
    first, *others = CALLS[method]
    missing = ["nowhere.jpg"] if isinstance(first, list) else "nowhere.jpg"
    with pytest.raises(InvalidInput, match=r"nowhere\.jpg cannot be read") as caught:
        ask(address, method, missing, *others)
    assert caught.value.field == "image"
    assert not service.metadata
