"""Tests both clients against a fake service. A test with `ask` runs once for each client."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.pictures import png
from fakes.vision_service import DESCRIPTION, HEATMAP, MODELS, Failure, FakeVisionService, listening
from google.protobuf.json_format import MessageToDict
from zfserve import (
    AsyncClient,
    Box,
    Cancelled,
    Classification,
    ClassScore,
    Client,
    DeadlineExceeded,
    Explanation,
    ImageReference,
    InvalidInput,
    ModelDescription,
    ModelIdentity,
    NotFound,
    OutOfRange,
    Overloaded,
    Position,
    PreconditionFailed,
    ServerFailed,
    TlsOptions,
    Unavailable,
    Unimplemented,
    ZfserveError,
    replies,
)
from zfserve_protos.v1 import zfserve_pb2 as pb

CERTIFICATES = Path(__file__).parent.parent / "runtime" / "access" / "tls"
Ask = Any


def test_classify_returns_every_value_of_the_reply(ask: Ask, address: str, service: FakeVisionService) -> None:
    answer: Classification = ask(address, "classify", b"1234", top_k=2, features=True)
    assert [(score.label, score.class_id, score.index, score.probability) for score in answer.classes] == [
        ("church", "n1", 1, 0.75),
        ("tench", "n0", 0, 0.1875),
    ]
    assert (answer.model.name, answer.model.version, answer.model.fingerprint) == ("zfnet", "3", "ab12")
    assert answer.image_reference == ImageReference("ref-4")
    assert answer.features == (0.5, 0.25)
    assert asdict(answer.timings) == {"decode_ms": 1.5, "queue_ms": 0.25, "inference_ms": 4.0, "batch_size": 2}
    request = service.classify_requests[0]
    assert (request.image.encoded, request.top_k, request.include_features) == (b"1234", 2, True)


def test_classify_leaves_the_number_of_classes_to_the_service(
    ask: Ask, address: str, service: FakeVisionService
) -> None:
    assert len(ask(address, "classify", b"1").classes) == 3
    assert not service.classify_requests[0].HasField("top_k")


def test_top_k_zero_is_sent_for_the_service_to_refuse(ask: Ask, address: str, service: FakeVisionService) -> None:
    service.failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, reason="INVALID_INPUT", field="top_k")]
    with pytest.raises(InvalidInput):
        ask(address, "classify", b"1", top_k=0)
    assert service.classify_requests[0].HasField("top_k")


def test_describe(ask: Ask, address: str) -> None:
    description: ModelDescription = ask(address, "describe")
    message = MessageToDict(DESCRIPTION, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for layer in message["layers"]:
        layer |= {f"{figure}_width": layer[figure] for figure in ("receptive_field", "stride", "offset")}
        layer["rule"] = layer["rule"].removeprefix("PROJECTION_RULE_").lower()
    for version in message["versions"]:
        version["state"] = version["state"].removeprefix("MODEL_STATE_").lower()
    assert _lists(asdict(description)) == message


def test_a_layer_whose_columns_differ_from_its_rows(ask: Ask, address: str, service: FakeVisionService) -> None:
    alike = pb.Layer(receptive_field=7, stride=2, offset=-3)
    differing = pb.Layer(receptive_field_width=9, stride_width=4, offset_width=0)
    differing.MergeFrom(alike)
    service.description = pb.DescribeModelResponse(layers=[differing, alike])
    wide, square = ask(address, "describe").layers
    assert (wide.receptive_field_width, wide.stride_width, wide.offset_width) == (9, 4, 0)
    assert (square.receptive_field_width, square.stride_width, square.offset_width) == (7, 2, -3)


def test_a_server_before_explain_leaves_the_new_fields_unset(
    ask: Ask, address: str, service: FakeVisionService
) -> None:
    service.description = pb.DescribeModelResponse(
        input=pb.InputSpec(height=224, width=224), layers=[pb.Layer(name="conv1", receptive_field=7, stride=2)]
    )
    description: ModelDescription = ask(address, "describe")
    (layer,) = description.layers
    assert (layer.stage, layer.whole_image, layer.rule, layer.receptive_field_width) == ("", False, "paper", 7)
    assert description.input.interpolation == "bilinear"
    assert (description.source, description.projection_obstacle, description.fixed_batch_size) == ("", "", 0)
    projection = replies.projection(pb.ProjectResponse(map=1), "conv1")
    assert (projection.layer, projection.rule, projection.extended_nodes) == ("conv1", "paper", ())


def test_models_are_listed_with_their_states(ask: Ask, address: str) -> None:
    failed, ready, other = ask(address, "list_models")
    assert (failed.name, failed.version, failed.state, failed.reason) == ("zfnet", "4", "failed", MODELS[0].reason)
    assert (ready.state, ready.fingerprint, ready.is_default) == ("ready", "ab12", True)
    assert (other.name, other.is_default) == ("birds", False)


@pytest.mark.parametrize(
    ("chosen", "sent"), [({}, ("", "")), ({"model": "birds"}, ("birds", "")), ({"version": "3"}, ("", "3"))]
)
def test_every_call_names_its_model(
    ask: Ask, address: str, service: FakeVisionService, chosen: dict[str, str], sent: tuple[str, str]
) -> None:
    ask(address, "classify", b"1", **chosen)
    ask(address, "classify_many", [b"1"], **chosen)
    ask(address, "project", b"1", "conv5", strongest=1, **chosen)
    ask(address, "explain", b"1", **chosen)
    ask(address, "describe", **chosen)
    asked = [request.model for request in service.classify_requests]
    asked += [*(request.model for request in service.project_requests), *service.described]
    asked += [request.model for request in service.explain_requests]
    assert [(selector.name, selector.version) for selector in asked] == [sent] * 5


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.OUT_OF_RANGE, OutOfRange),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.FAILED_PRECONDITION, PreconditionFailed),
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented),
        (grpc.StatusCode.INTERNAL, ServerFailed),
        (grpc.StatusCode.UNKNOWN, ServerFailed),
    ],
)
@pytest.mark.parametrize("method", ["classify", "project", "explain"])
def test_every_status_has_its_error_and_is_not_retried(
    ask: Ask, address: str, service: FakeVisionService, method: str, code: grpc.StatusCode, kind: type[ZfserveError]
) -> None:
    service.failures = [Failure(code, "Do this.", "SOME_REASON", "image.encoded", retry_after_s=1.5)]
    with pytest.raises(ZfserveError) as caught:
        ask(address, method, b"1")
    error = caught.value
    assert type(error) is kind
    assert (error.message, str(error), error.code) == ("Do this.", "Do this.", code)
    assert (error.reason, error.field, error.retry_after_s, error.request_id) == (
        "SOME_REASON",
        "image.encoded",
        1.5,
        "r-1",
    )
    assert len(service.metadata) == 1


@pytest.mark.parametrize(
    "failure",
    [
        Failure(grpc.StatusCode.UNAVAILABLE),
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=1),
        Failure(grpc.StatusCode.CANCELLED),
    ],
    ids=lambda failure: failure.code.name,
)
@pytest.mark.parametrize("method", ["classify", "explain"])
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_refused_call_is_retried_for_photos_of_any_size(
    ask: Ask, address: str, service: FakeVisionService, failure: Failure, size: int, method: str
) -> None:
    service.failures = [failure, failure]
    assert ask(address, method, bytes(size))
    assert len(service.metadata) == 3


def test_a_call_that_stays_refused_says_when_to_retry(ask: Ask, address: str, service: FakeVisionService) -> None:
    service.failures = [
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=0.25, pushback_ms=1)
    ] * 4
    with pytest.raises(Overloaded) as caught:
        ask(address, "classify", b"1")
    assert caught.value.retry_after_s == 0.25
    assert len(service.classify_requests) == 4


@pytest.mark.parametrize(("side", "says"), [("SERVER", "scale the photo down"), ("CLIENT", "raise max_message_bytes")])
def test_a_message_that_is_too_large_for_grpc_is_invalid_input(
    ask: Ask, address: str, service: FakeVisionService, side: str, says: str
) -> None:
    words = f"{side}: Received message larger than max (20000012 vs. 17825792)"
    service.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, words, pushback_ms=1)] * 4
    with pytest.raises(InvalidInput, match=f"{says} .*20000012") as caught:
        ask(address, "classify", b"1")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_that_servers_keep_cancelling_is_cancelled(ask: Ask, address: str, service: FakeVisionService) -> None:
    service.failures = [Failure(grpc.StatusCode.CANCELLED, pushback_ms=1)] * 4
    with pytest.raises(Cancelled):
        ask(address, "classify", b"1")
    assert len(service.classify_requests) == 4


def test_nobody_listens(ask: Ask) -> None:
    with pytest.raises(Unavailable) as caught:
        ask("127.0.0.1:1", "describe", timeout_s=10)
    assert not caught.value.reason


def test_a_deadline(ask: Ask, address: str, service: FakeVisionService) -> None:
    service.open.clear()
    with pytest.raises(DeadlineExceeded):
        ask(address, "classify", b"1", timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        ask(address, "classify", b"1", client={"timeout_s": 0.05})
    with pytest.raises(DeadlineExceeded):
        ask(address, "classify", b"1", timeout_s=0)


def test_retries_go_on_while_a_server_delays_each_call_once(address: str, service: FakeVisionService) -> None:
    delayed = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=1)

    async def many() -> None:
        async with AsyncClient(address) as client:
            for _ in range(150):
                service.failures = [delayed]
                await client.classify(b"1")

    asyncio.run(many())
    with Client(address) as client:
        for _ in range(150):
            service.failures = [delayed]
            client.classify(b"1")


def test_projections_are_results_with_types(ask: Ask, address: str, service: FakeVisionService) -> None:
    first, second = ask(address, "project", b"1", "conv5", strongest=2)
    assert (first.map, first.unit, first.activation, first.rank, first.total) == (0, Position(3, 4), 2.0, 0, 2)
    assert asdict(first.box) == {"left": 8, "top": 16, "right": 12, "bottom": 18}
    assert asdict(first.source_box) == {"left": 16, "top": 32, "right": 24, "bottom": 36}
    assert first.png == png((128, 140, 150))
    assert first.pixels is None
    assert first.patch_png == png((200, 120, 40))
    assert second.rank == 1
    assert service.project_requests[0].format == pb.PICTURE_FORMAT_PNG


def test_projections_of_named_maps_and_a_whole_map(ask: Ask, address: str, service: FakeVisionService) -> None:
    answers = ask(address, "project", ImageReference("r"), "conv2", maps=[7, 3], unit="whole", format="float32")
    assert [(answer.map, answer.unit, answer.source_box, answer.png) for answer in answers] == [
        (7, None, None, None),
        (3, None, None, None),
    ]
    assert answers[0].pixels.to_numpy().shape == (3, 2, 4)
    assert answers[0].pixels.to_numpy().tobytes() == bytes(range(96))
    request = service.project_requests[0]
    assert (request.image.reference, request.layer, list(request.selection.indices)) == ("r", "conv2", [7, 3])


def test_a_projection_names_its_layer_and_its_rule(ask: Ask, address: str, service: FakeVisionService) -> None:
    (last,) = ask(address, "project", b"1", strongest=1)
    assert service.project_requests[0].layer == "last"
    assert (last.layer, last.rule, last.extended_nodes) == ("relu5", "paper", ())
    (extended,) = ask(address, "project", b"1", "silu", strongest=1)
    assert (extended.layer, extended.rule) == ("silu", "extended")
    assert extended.extended_nodes == ("stage1.silu", "stage2.silu", "stage3.silu", "stage4.silu", "stage5.silu")


def test_an_explanation_has_types(ask: Ask, address: str, service: FakeVisionService) -> None:
    answer: Explanation = ask(address, "explain", b"1")
    (request,) = service.explain_requests
    assert (request.layer, request.class_name) == ("last", "")
    assert request.method == pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS
    assert answer.for_class == ClassScore("church", "n1", 1, 0.75)
    assert (answer.served_probability, answer.served_precision) == (0.6875, "int8")
    assert (answer.layer, answer.method) == ("relu5", "integrated-gradients")
    assert (answer.score, answer.baseline_score, answer.completeness_gap, answer.scale) == (4.0, 1.0, 0.25, 2.0)
    assert answer.overlay_png == png((90, 30, 20))
    assert answer.source_box == Box(0, 0, 40, 30)
    assert answer.model == ModelIdentity("zfnet", "3", "ab12")
    assert answer.heatmap.rows() == HEATMAP
    assert answer.heatmap.to_numpy().tolist() == [list(row) for row in HEATMAP]


def test_an_explanation_by_grad_cam_has_no_baseline(ask: Ask, address: str, service: FakeVisionService) -> None:
    answer: Explanation = ask(
        address, "explain", ImageReference("r"), layer="stage4", class_name="bee", method="grad-cam"
    )
    (request,) = service.explain_requests
    assert (request.image.reference, request.layer, request.class_name) == ("r", "stage4", "bee")
    assert (answer.method, answer.baseline_score, answer.completeness_gap) == ("grad-cam", None, None)
    assert answer.source_box is None


def test_a_method_that_does_not_exist_is_invalid_input(ask: Ask, address: str, service: FakeVisionService) -> None:
    with pytest.raises(InvalidInput, match="no method 'lime'; give 'integrated-gradients' or 'grad-cam'") as caught:
        ask(address, "explain", b"1", method="lime")
    assert caught.value.field == "method"
    assert not service.explain_requests


@pytest.mark.parametrize("wanted", ["bee", ""])
def test_projections_for_a_class(ask: Ask, address: str, service: FakeVisionService, wanted: str) -> None:
    first, second = ask(address, "project", b"1", "conv5", strongest=2, for_class=wanted)
    assert (first.attribution, second.attribution) == (0.25, -0.25)
    assert first.for_class == ClassScore("bee", "n1", 1, 0.5)
    (request,) = service.project_requests
    assert (request.for_class.class_name, request.for_class.count) == (wanted, 2)
    assert (request.WhichOneof("maps"), request.unit.WhichOneof("rule")) == ("for_class", "strongest")
    (plain,) = ask(address, "project", b"1", "conv5", strongest=1)
    assert (plain.for_class, plain.attribution) == (None, None)
    with pytest.raises(InvalidInput, match="not both"):
        ask(address, "project", b"1", "conv5", maps=[1], for_class=wanted)


def test_calls_go_round_robin(ask: Ask) -> None:
    services = FakeVisionService(), FakeVisionService()
    with listening(services[0]) as first, listening(services[1]) as second:
        address = f"127.0.0.1:{first},127.0.0.1:{second}"
        # The first calls may come before the second connection is ready. After that the servers get calls in turn.
        answers = ask(address, "classify_many", [b"1"] * 200, in_flight=1)
    assert all(isinstance(answer, Classification) for answer in answers)
    assert min(len(service.classify_requests) for service in services) > 0


def test_tls_with_both_certificates_and_another_name(ask: Ask, service: FakeVisionService) -> None:
    ca, key, chain = ((CERTIFICATES / name).read_bytes() for name in ("ca.pem", "server.key", "server.pem"))
    credentials = grpc.ssl_server_credentials([(key, chain)], ca, require_client_auth=True)
    tls = TlsOptions(
        CERTIFICATES / "ca.pem", CERTIFICATES / "client.pem", CERTIFICATES / "client.key", server_name="localhost"
    )
    with listening(service, credentials=credentials) as port:
        assert ask(f"127.0.0.1:{port}", "describe", client={"tls": tls}).architecture == "zfnet"
        with pytest.raises(Unavailable):
            ask(f"127.0.0.1:{port}", "describe", client={"tls": TlsOptions(CERTIFICATES / "ca.pem")})


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(entry) for key, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, tuple) else value
