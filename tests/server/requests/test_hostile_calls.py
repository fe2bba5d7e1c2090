"""Answers and log lines for hostile calls hold no path, no traceback and no secret."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.callers import bearer, write_callers
from fakes.serving import FakeEngine, Running, raw_image, running_server
from zfserve_protos.inference import grpc_service_pb2 as inference
from zfserve_protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.access.callers_file import read_callers_file
from zfserve_runtime.telemetry.logs import JsonLines

ROOT = Path(__file__).parents[3]
PASSWORDS = "../../../../../etc/passwd"
SECRET = "/var/lib/another-users-photo.jpg"
IMAGES = (b"", b"\xff\xd8\xff junk", b"\x89PNG\r\n\x1a\n", b"II*\0" + bytes(range(256)), b"GIF89a", b"RIFF....WEBP")

NEVER_ANSWERED = (str(ROOT), ".py", "Traceback", "site-packages", "PIL", "Error(", SECRET)


@pytest.fixture
async def token(tmp_path: Path) -> str:
    return write_callers(tmp_path / "tokens.json", shop="all")["shop"]


@pytest.fixture
async def server(tmp_path: Path, token: str, engine: FakeEngine) -> AsyncIterator[Running]:
    async with running_server(engine, tokens=tmp_path / "tokens.json", max_image_bytes=50_000) as running:
        yield running


async def answer_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """Returns the code of a call that fails, and all text that the caller receives."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    error = refused.value
    return error.code(), repr((error.details(), error.initial_metadata(), error.trailing_metadata()))


def hostile_calls(server: Running, token: str) -> list[tuple[str, Any]]:
    """Returns pairs of the status codes that a call may end with, as one string, and the call."""
    known: dict[str, Any] = {"metadata": bearer(token)}
    vision = server.vision
    infer = GRPCInferenceServiceStub(server.channel)

    def raw(method: str, data: bytes) -> Any:
        call: Any = server.channel.unary_unary(method)
        return call(data, **known)

    def classify(image: pb.Image, **fields: Any) -> Any:
        return vision.Classify(pb.ClassifyRequest(image=image, **fields), **known)

    elsewhere = pb.ModelSelector(name=PASSWORDS, version=PASSWORDS)
    strangers = (bearer(token[:-1]), bearer(token.upper()), (("authorization", token),), (("cookie", token),))
    sound = pb.ClassifyRequest(image=raw_image(1))
    bad = [pb.Image(encoded=data) for data in IMAGES]
    return [
        *(("UNAUTHENTICATED", vision.Classify(sound, metadata=metadata)) for metadata in strangers),
        *(("INVALID_ARGUMENT", classify(pb.Image(encoded=data))) for data in IMAGES),
        ("NOT_FOUND", classify(pb.Image(reference=PASSWORDS))),
        ("NOT_FOUND", classify(raw_image(1), model=elsewhere)),
        ("NOT_FOUND", vision.DescribeModel(pb.DescribeModelRequest(model=elsewhere), **known)),
        ("NOT_FOUND", infer.ModelMetadata(inference.ModelMetadataRequest(name=PASSWORDS), **known)),
        ("NOT_FOUND", infer.ModelInfer(inference.ModelInferRequest(model_name=PASSWORDS), **known)),
        ("NOT_FOUND UNAVAILABLE", vision.Project(pb.ProjectRequest(layer=PASSWORDS), **known).read()),
        ("NOT_FOUND", vision.Explain(pb.ExplainRequest(layer=PASSWORDS), **known)),
        ("NOT_FOUND", vision.Explain(pb.ExplainRequest(class_name=PASSWORDS), **known)),
        (
            "NOT_FOUND",
            vision.Activations(pb.ActivationsRequest(images=[raw_image(1)], layers=[PASSWORDS]), **known).read(),
        ),
        ("INVALID_ARGUMENT", vision.Activations(pb.ActivationsRequest(images=bad, layers=["conv1"]), **known).read()),
        ("NOT_FOUND", vision.Occlude(pb.OccludeRequest(layer=PASSWORDS), **known).read()),
        ("NOT_FOUND", vision.Ablate(pb.AblateRequest(layer=PASSWORDS), **known).read()),
        (
            "NOT_FOUND",
            vision.Transform(pb.TransformRequest(kind=pb.TRANSFORM_KIND_SCALE, class_name=PASSWORDS), **known).read(),
        ),
        ("INVALID_ARGUMENT RESOURCE_EXHAUSTED", classify(pb.Image(encoded=bytes(60_000)))),
        ("RESOURCE_EXHAUSTED", classify(pb.Image(encoded=bytes(5_000_000)))),
        ("INVALID_ARGUMENT", raw("/zfserve.v1.VisionService/Classify", b"\xff\xff no message")),
        ("UNIMPLEMENTED", raw(f"/zfserve.v1.VisionService/{PASSWORDS}", b"")),
        ("UNIMPLEMENTED", raw("/zfserve.v1.Nobody/Home", b"")),
    ]


async def test_no_answer_and_no_log_line_holds_a_secret(
    server: Running, token: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for room in ("zfserve_runtime", "zfserve_server"):
        caplog.set_level(logging.DEBUG, logger=room)
    for codes, call in hostile_calls(server, token):
        code, answer = await answer_of(call)
        assert code.name in codes.split(), answer
        assert [word for word in (*NEVER_ANSWERED, token) if word in answer] == []
    assert (await server.vision.Classify(pb.ClassifyRequest(image=raw_image(1)), metadata=bearer(token))).classes
    lines = [JsonLines().format(record) for record in caplog.records]
    assert any('"UNAUTHENTICATED"' in line for line in lines)
    digest = read_callers_file(tmp_path / "tokens.json").callers[0].token_sha256
    assert digest is not None
    for line in lines:
        assert [
            word for word in (token, token[:-1], digest, "Bearer zfs", "traceback", str(ROOT)) if word in line
        ] == []


async def test_an_internal_error_goes_to_the_log_only(
    server: Running, token: str, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.failures = [RuntimeError(f"cannot map {SECRET}")] * 2  # the second run holds the image alone
    code, answer = await answer_of(
        server.vision.Classify(pb.ClassifyRequest(image=raw_image(1)), metadata=bearer(token))
    )
    assert code is grpc.StatusCode.INTERNAL
    assert [word for word in (*NEVER_ANSWERED, token) if word in answer] == []
    assert all(token not in JsonLines().format(record) for record in caplog.records)
