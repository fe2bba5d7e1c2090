"""Classify and DescribeModel are called through a real channel, with a fake engine."""

import asyncio
import io
import struct
import zlib

import grpc
import numpy as np
import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import (
    CLASSES,
    FINGERPRINT,
    MANIFEST,
    SIDE,
    FakeEngine,
    Running,
    classify_request,
    raw_image,
    running_server,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from zfserve_protos.methods import PROJECTION, VISION_SERVICE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import (
    EngineFailed,
    ImageTooLarge,
    ImageUndecodable,
    InvalidInput,
    NotFound,
    Overloaded,
    ServiceError,
)
from zfserve_runtime.grpc.health import SERVER
from zfserve_runtime.grpc.status import from_call_error

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def encode(width: int, height: int, file_format: str = "PNG") -> bytes:
    opened = io.BytesIO()
    Image.new("RGB", (width, height), (1, 2, 3)).save(opened, file_format)
    return opened.getvalue()


def png_bomb() -> bytes:
    """Returns a PNG of a few bytes whose header says 3.6e9 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


async def error_of(call: "grpc.aio.UnaryUnaryCall[pb.ClassifyRequest, pb.ClassifyResponse]") -> ServiceError:
    """Returns the error that a call ends with, as read from its details."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    error = from_call_error(failed.value)
    assert error is not None, failed.value
    assert error.status is failed.value.code()
    return error


async def health_of(server: Running, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    status: int = (await health_pb2_grpc.HealthStub(server.channel).Check(request)).status
    return status


async def test_classify_answers_all_fields(server: Running) -> None:
    request = pb.ClassifyRequest(image=raw_image(263), top_k=2, include_features=True)
    answer = await server.vision.Classify(request)
    best = answer.classes[0]
    assert (best.index, best.class_id, best.label) == (7, "n7", "class 7")
    assert [score.index for score in answer.classes] == [7, 0]
    assert [score.probability for score in answer.classes] == pytest.approx([0.55, 0.05])
    assert list(answer.features) == [263, 526]
    assert (answer.model.name, answer.model.version, answer.model.fingerprint) == ("fake", "7", FINGERPRINT)
    assert answer.timings.batch_size == 1
    assert answer.timings.queue_ms > 0
    assert answer.timings.inference_ms > 0


async def test_classify_decodes_a_file(server: Running) -> None:
    answer = await server.vision.Classify(pb.ClassifyRequest(image=pb.Image(encoded=encode(SIDE, SIDE))))
    assert answer.classes[0].index == 2  # the second byte of the pixel (1, 2, 3)
    assert len(answer.classes) == 5
    assert not answer.features
    assert answer.timings.decode_ms > 0


@pytest.mark.parametrize(("width", "height"), [(1, 1), (30_000, 10)])
async def test_classify_takes_photos_of_any_shape(server: Running, width: int, height: int) -> None:
    for image in (
        pb.Image(encoded=encode(width, height)),
        pb.Image(raw=pb.RawPixels(width=width, height=height, data=b"\1\2\3" * width * height)),
    ):
        assert (await server.vision.Classify(pb.ClassifyRequest(image=image))).classes[0].index == 2


@pytest.mark.parametrize(
    ("image", "error", "field"),
    [
        pytest.param(pb.Image(), InvalidInput, "image", id="none"),
        pytest.param(pb.Image(encoded=b""), ImageUndecodable, "image.encoded", id="empty"),
        pytest.param(pb.Image(encoded=b"not an image"), ImageUndecodable, "image.encoded", id="not an image"),
        pytest.param(pb.Image(encoded=encode(64, 64, "JPEG")[:-99]), ImageUndecodable, "image.encoded", id="truncated"),
        pytest.param(pb.Image(encoded=png_bomb()), ImageTooLarge, "image.encoded", id="bomb"),
        pytest.param(pb.Image(encoded=bytes(17 * 2**20 - 2**10)), ImageTooLarge, "image.encoded", id="many bytes"),
        pytest.param(pb.Image(raw=pb.RawPixels(width=SIDE, height=SIDE)), InvalidInput, "image.raw", id="no pixels"),
        pytest.param(pb.Image(raw=pb.RawPixels(data=b"123")), InvalidInput, "image.raw", id="no sides"),
        pytest.param(pb.Image(reference="guess"), NotFound, "image.reference", id="unknown reference"),
    ],
)
async def test_bad_images(server: Running, image: pb.Image, error: type[ServiceError], field: str | None) -> None:
    answered = await error_of(server.vision.Classify(pb.ClassifyRequest(image=image)))
    assert isinstance(answered, error)
    assert answered.field == field
    assert (await server.vision.Classify(classify_request(1))).classes[0].index == 1


async def test_a_network_without_features_classifies_and_says_so(repository: FakeModelRepository) -> None:
    repository.put(MANIFEST.model_copy(update={"feature_width": 0}), FakeEngine(feature_width=0))
    async with running_server(repository=repository) as server:
        answered = await error_of(server.vision.Classify(classify_request(3)))
        assert (type(answered), answered.field) == (InvalidInput, "include_features")
        answer = await server.vision.Classify(pb.ClassifyRequest(image=raw_image(3)))
        assert answer.classes[0].index == 3
        assert not answer.features


@pytest.mark.parametrize("top_k", [0, CLASSES + 1])
async def test_a_top_k_out_of_range(server: Running, top_k: int) -> None:
    answered = await error_of(server.vision.Classify(pb.ClassifyRequest(image=raw_image(1), top_k=top_k)))
    assert type(answered) is InvalidInput
    assert answered.field == "top_k"
    assert str(CLASSES) in answered.message


async def test_all_classes(server: Running) -> None:
    answer = await server.vision.Classify(pb.ClassifyRequest(image=raw_image(3), top_k=CLASSES))
    assert sorted(score.index for score in answer.classes) == list(range(CLASSES))
    assert sum(score.probability for score in answer.classes) == pytest.approx(1.0)


async def test_a_reference_stands_for_its_photo(server: Running) -> None:
    first = await server.vision.Classify(classify_request(4))
    await server.vision.Classify(classify_request(5))
    request = pb.ClassifyRequest(image=pb.Image(reference=first.image_reference))
    again = await server.vision.Classify(request)
    assert again.classes[0].index == 4
    assert again.image_reference == first.image_reference


async def test_a_reference_expires(engine: FakeEngine) -> None:
    async with running_server(engine, reference_ttl=1e-9) as server:
        first = await server.vision.Classify(classify_request(4))
        request = pb.ClassifyRequest(image=pb.Image(reference=first.image_reference))
        assert type(await error_of(server.vision.Classify(request))) is NotFound


async def test_the_largest_image_allowed_arrives(engine: FakeEngine) -> None:
    """The image is larger than gRPC's default limit of 4 MiB."""
    async with running_server(engine, max_image_bytes=3 * 2000 * 1000) as server:
        raw = pb.RawPixels(width=2000, height=1000, data=bytes(3 * 2000 * 1000))
        assert (await server.vision.Classify(pb.ClassifyRequest(image=pb.Image(raw=raw)))).classes[0].index == 0


async def test_many_clients_each_get_their_own_answer(server: Running) -> None:
    answers = await asyncio.gather(*(server.vision.Classify(classify_request(identity)) for identity in range(200)))
    assert [answer.features[0] for answer in answers] == list(range(200))


async def test_overload_is_refused_at_once_with_a_delay(engine: FakeEngine) -> None:
    async with running_server(engine, max_queue=3) as server:
        engine.open.clear()
        accepted = [server.vision.Classify(classify_request(identity)) for identity in range(3)]
        sent = [asyncio.ensure_future(call) for call in accepted]
        await engine.begun()
        while (refused := await error_of_overload(server)) is None:
            pass
        assert refused.retry_after_s is not None
        assert refused.retry_after_s > 0
        engine.open.set()
        answers = await asyncio.gather(*sent)
        assert [answer.features[0] for answer in answers] == [0, 1, 2]
        assert (await server.vision.Classify(classify_request(9))).features[0] == 9


async def error_of_overload(server: Running) -> Overloaded | None:
    """Returns None if this call was itself accepted. It then ends at its deadline."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await server.vision.Classify(classify_request(7), timeout=0.5)
    error = from_call_error(failed.value)
    return error if isinstance(error, Overloaded) else None


async def test_an_expired_request_is_never_run(server: Running, engine: FakeEngine) -> None:
    engine.open.clear()
    first = asyncio.ensure_future(server.vision.Classify(classify_request(1)))
    await engine.begun()
    expiring = server.vision.Classify(classify_request(2), timeout=2)
    await server.wait_for_queue_depth(1)  # on a busy machine a short deadline would pass before the queue is reached
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await expiring
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await server.wait_for_queue_depth(0)  # the server's deadline is later than the client's
    mate = asyncio.ensure_future(server.vision.Classify(classify_request(3)))
    engine.open.set()
    await asyncio.gather(first, mate)
    assert [2] not in engine.batches
    assert all(2 not in batch for batch in engine.batches)
    await server.wait_for_metric('zfserve_queue_expired_total{model="fake",version="7"} 1.0')


async def test_a_failing_engine_fails_its_batch_and_serves_on(server: Running, engine: FakeEngine) -> None:
    engine.failures.append(RuntimeError("cuda error 700 at /secret/path"))
    answered = await error_of(server.vision.Classify(classify_request(1)))
    assert type(answered) is EngineFailed
    assert "secret" not in answered.message
    assert (await server.vision.Classify(classify_request(2))).features[0] == 2
    assert await health_of(server, VISION_SERVICE) == SERVING


async def test_health_of_a_server_without_a_worker(server: Running) -> None:
    assert await health_of(server, SERVER) == SERVING
    assert await health_of(server, VISION_SERVICE) == SERVING
    assert await health_of(server, PROJECTION) == NOT_SERVING


async def test_describe_model(server: Running) -> None:
    answer = await server.vision.DescribeModel(pb.DescribeModelRequest())
    assert answer.model.fingerprint == FINGERPRINT
    assert answer.architecture == "zfnet"
    assert [score.label for score in answer.classes][:2] == ["class 0", "class 1"]
    assert (answer.input.height, answer.input.width, answer.input.resize) == (SIDE, SIDE, "squash")
    assert list(answer.input.mean) == [0.5, 0.5, 0.5]
    assert [(layer.name, layer.kind, layer.channels, layer.offset) for layer in answer.layers] == [
        ("conv1", "conv", 6, -1),
        ("pool1", "pool", 6, -1),
    ]
    assert [(figure.precision, figure.max_difference) for figure in answer.parity] == [("fp32", 1e-6)]
    assert [(figure.precision, figure.top1, figure.top5) for figure in answer.accuracy] == [("fp32", 0.875, 1.0)]
    assert (answer.engine.runtime, answer.engine.precision, answer.engine.max_batch_size) == ("fake", "fp32", 4)
    assert answer.feature_width == 2
    assert not answer.projection_available


async def test_equally_probable_classes_keep_the_models_order(server: Running) -> None:
    answer = await server.vision.Classify(pb.ClassifyRequest(image=raw_image(9), top_k=4))
    assert [score.index for score in answer.classes] == [9, 0, 1, 2]
    assert np.all(np.diff([score.probability for score in answer.classes]) <= 0)
