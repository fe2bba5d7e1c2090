"""Fakes the VisionService with fixed answers. It can hold, fail and count calls. The tests of the client use it."""

import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import grpc
from fakes.pictures import png
from fakes.study_answers import (
    ablation_messages,
    activations_messages,
    occlusion_messages,
    transform_messages,
)
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceServicer, add_VisionServiceServicer_to_server

_Message = TypeVar("_Message")

LABELS = ("tench", "church", "golf ball")
MODEL = pb.ModelIdentity(name="zfnet", version="3", fingerprint="ab12")
MODELS = (
    pb.ModelStatus(name="zfnet", version="4", state=pb.MODEL_STATE_FAILED, reason="model.onnx is missing"),
    pb.ModelStatus(name="zfnet", version="3", state=pb.MODEL_STATE_READY, fingerprint="ab12", is_default=True),
    pb.ModelStatus(name="birds", version="1", state=pb.MODEL_STATE_READY, fingerprint="cd34"),
)
DESCRIPTION = pb.DescribeModelResponse(
    model=MODEL,
    architecture="zfnet",
    classes=[pb.ClassScore(label=label, class_id=f"n{index}", index=index) for index, label in enumerate(LABELS)],
    input=pb.InputSpec(
        height=224,
        width=224,
        resize="squash",
        shorter_side=256,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        interpolation="bicubic",
    ),
    layers=[
        pb.Layer(
            name="conv1",
            kind="conv",
            channels=96,
            height=110,
            width=110,
            receptive_field=7,
            stride=2,
            offset=-1,
            stage="stage1",
            rule=pb.PROJECTION_RULE_PAPER,
        ),
        pb.Layer(
            name="pool1",
            kind="pool",
            channels=96,
            height=55,
            width=55,
            receptive_field=11,
            stride=4,
            offset=-1,
            stage="stage1",
            rule=pb.PROJECTION_RULE_PAPER,
        ),
    ],
    parity=[pb.ParityFigure(precision="fp32", inputs="photos", count=8, max_difference=1e-6, top1_agreement=1.0)],
    accuracy=[pb.AccuracyFigure(precision="int8", count=3925, top1=0.875, top5=0.9375)],
    engine=pb.Engine(
        runtime="onnxruntime",
        provider="CPUExecutionProvider",
        precision="int8",
        max_batch_size=16,
        threads=2,
        name="onnx-cpu",
        device="CPU",
        instances=1,
        not_taken=[pb.EngineNotTaken(name="tensorrt", reason="there is no NVIDIA GPU on this machine")],
        startup_seconds=1.5,
    ),
    feature_width=256,
    projection_available=True,
    versions=MODELS,
    source="checkpoint.safetensors",
)


@dataclass(frozen=True)
class Failure:
    """Describes the error with which one call ends.

    Attributes:
        code: the gRPC status.
        message: the sentence.
        reason: the reason in ErrorInfo. "" sends no ErrorInfo.
        field: the field in BadRequest. "" sends no BadRequest.
        retry_after_s: the delay in RetryInfo, in seconds. None sends no RetryInfo.
        pushback_ms: the value of `grpc-retry-pushback-ms`. None sends none, and a negative value forbids retries.
    """

    code: grpc.StatusCode
    message: str = "no."
    reason: str = ""
    field: str = ""
    retry_after_s: float | None = None
    pushback_ms: int | None = None

    def end(self, context: grpc.ServicerContext) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        metadata: list[tuple[str, str | bytes]] = []
        if self.reason:
            info = error_details_pb2.ErrorInfo(reason=self.reason, domain="zfserve", metadata={"request_id": "r-1"})
            status.details.add().Pack(info)
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after_s is not None:
            delay = Duration()
            delay.FromNanoseconds(round(self.retry_after_s * 1e9))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        if self.pushback_ms is not None:
            metadata.append(("grpc-retry-pushback-ms", str(self.pushback_ms)))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()), *metadata))
        context.abort(self.code, self.message)


StudyRequest: TypeAlias = pb.ActivationsRequest | pb.OccludeRequest | pb.AblateRequest | pb.TransformRequest


@dataclass
class FakeVisionService(VisionServiceServicer):
    """Answers each photo with a class that depends on its size or length, so that each photo has its own answer.

    Attributes:
        failures: the errors of the next calls. Each call takes one.
        project_failures: the errors of the next Project calls, after those of `failures`.
        late_failures: the errors of the next streams after their first message. Each stream takes one.
        open: while it is cleared, every Classify waits, and every message but the first of a stream.
        arrived: it has one permit for every Classify that has begun.
        cancelled: it is set when a stream ends, for example because its caller cancels.
        classify_requests: the requests of all Classify calls.
        project_requests: the requests of all Project calls.
        explain_requests: the requests of all Explain calls.
        study_requests: the requests of all calls of Activations, Occlude, Ablate and Transform.
        description: the answer of DescribeModel.
        described: the models that DescribeModel calls asked for.
        traceparents: the `traceparent` of each call that sent one.
        peers: the addresses of the connections of the calls.
        authorizations: the `authorization` of each call, or None.
        metadata: the metadata of each call.
        most_at_once: the largest number of Classify calls in flight at the same time.
    """

    failures: list[Failure] = field(default_factory=list)
    project_failures: list[Failure] = field(default_factory=list)
    late_failures: list[Failure] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    cancelled: threading.Event = field(default_factory=threading.Event)
    classify_requests: list[pb.ClassifyRequest] = field(default_factory=list)
    project_requests: list[pb.ProjectRequest] = field(default_factory=list)
    explain_requests: list[pb.ExplainRequest] = field(default_factory=list)
    study_requests: list[StudyRequest] = field(default_factory=list)
    description: pb.DescribeModelResponse = field(default_factory=lambda: DESCRIPTION)
    described: list[pb.ModelSelector] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    authorizations: list[str | None] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.open.set()

    def _record(self, context: grpc.ServicerContext) -> None:
        metadata = context.invocation_metadata()
        self.metadata.append(dict(metadata))
        self.peers.add(context.peer())
        self.traceparents += [str(value) for key, value in metadata if key == "traceparent"]
        self.authorizations.append(next((str(value) for key, value in metadata if key == "authorization"), None))

    def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:  # noqa: N802
        self._record(context)
        with self._lock:
            self.classify_requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            failure = self.failures.pop(0) if self.failures else None
        self.arrived.release()
        try:
            if failure is not None:
                failure.end(context)
            assert self.open.wait(timeout=30)
        finally:
            with self._lock:
                self._at_once -= 1
        best = identity_of(request.image) % len(LABELS)
        order = [best, *(index for index in range(len(LABELS)) if index != best)]
        scores = [
            pb.ClassScore(label=LABELS[index], class_id=f"n{index}", index=index, probability=probability)
            for index, probability in zip(order, (0.75, 0.1875, 0.0625), strict=True)
        ]
        return pb.ClassifyResponse(
            classes=scores[: request.top_k if request.HasField("top_k") else 5],
            model=MODEL,
            image_reference=f"ref-{identity_of(request.image)}",
            features=[0.5, 0.25] if request.include_features else [],
            timings=pb.Timings(decode_ms=1.5, queue_ms=0.25, inference_ms=4.0, batch_size=2),
        )

    def Project(  # noqa: N802
        self, request: pb.ProjectRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ProjectResponse]:
        self._record(context)
        self.project_requests.append(request)
        context.add_callback(self.cancelled.set)
        for failures in (self.failures, self.project_failures):
            if failures:
                failures.pop(0).end(context)
        chosen = {
            "selection": request.selection.indices,
            "for_class": range(request.for_class.count),
            "strongest": range(request.strongest),
        }
        maps = chosen[request.WhichOneof("maps") or "strongest"]
        projections = (projection_message(request, index, rank, len(maps)) for rank, index in enumerate(maps))
        yield from self._held(projections, context)

    def _held(self, messages: Iterator[_Message], context: grpc.ServicerContext) -> Iterator[_Message]:
        """Yields the first message, and the others when `open` is set."""
        for rank, message in enumerate(messages):
            if rank:
                while not self.open.wait(timeout=0.02):
                    if not context.is_active():
                        return
                if self.late_failures:
                    self.late_failures.pop(0).end(context)
            yield message

    def _study(
        self, request: StudyRequest, messages: Iterator[_Message], context: grpc.ServicerContext
    ) -> Iterator[_Message]:
        self._record(context)
        self.study_requests.append(request)
        context.add_callback(self.cancelled.set)
        if self.failures:
            self.failures.pop(0).end(context)
        yield from self._held(messages, context)

    def Activations(  # noqa: N802
        self, request: pb.ActivationsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ActivationsResponse]:
        return self._study(request, activations_messages(request), context)

    def Occlude(  # noqa: N802
        self, request: pb.OccludeRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.OccludeResponse]:
        return self._study(request, occlusion_messages(request), context)

    def Ablate(self, request: pb.AblateRequest, context: grpc.ServicerContext) -> Iterator[pb.AblateResponse]:  # noqa: N802
        return self._study(request, ablation_messages(request), context)

    def Transform(  # noqa: N802
        self, request: pb.TransformRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.TransformResponse]:
        return self._study(request, transform_messages(request), context)

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:  # noqa: N802
        self._record(context)
        self.explain_requests.append(request)
        if self.failures:
            self.failures.pop(0).end(context)
        return explanation_message(request)

    def DescribeModel(  # noqa: N802
        self, request: pb.DescribeModelRequest, context: grpc.ServicerContext
    ) -> pb.DescribeModelResponse:
        self._record(context)
        if self.failures:
            self.failures.pop(0).end(context)
        self.described.append(request.model)
        return self.description

    def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        self._record(context)
        return pb.ListModelsResponse(models=MODELS)


def identity_of(image: pb.Image) -> int:
    """Returns the number that stands for a photo: the width of raw pixels, or else the number of bytes."""
    return image.raw.width if image.HasField("raw") else len(image.encoded or image.reference)


def projection_message(request: pb.ProjectRequest, index: int, rank: int, total: int) -> pb.ProjectResponse:
    message = pb.ProjectResponse(
        map=index,
        unit=None if request.unit.HasField("whole_map") else pb.Position(row=3, column=4),
        activation=2.0 - rank / 4,
        box=pb.Box(left=8, top=16, right=12, bottom=18),
        source_box=None if request.image.HasField("reference") else pb.Box(left=16, top=32, right=24, bottom=36),
        patch_png=png((200, 120, 40)),
        model=MODEL,
        rank=rank,
        total=total,
        layer="relu5" if request.layer == "last" else "",
        rule=pb.PROJECTION_RULE_PAPER,
    )
    if request.layer == "silu":
        message.rule = pb.PROJECTION_RULE_EXTENDED
        message.extended_nodes.extend(f"stage{number}.silu" for number in range(1, 6))
    if request.HasField("for_class"):
        message.for_class.CopyFrom(pb.ClassScore(label="bee", class_id="n1", index=1, probability=0.5))
        message.attribution = 0.25 - rank / 2
    if request.format == pb.PICTURE_FORMAT_FLOAT32:
        message.float32.CopyFrom(pb.Float32Picture(height=2, width=4, data=bytes(range(96))))
    else:
        message.png = png((128, 140, 150))
    return message


HEATMAP = ((0.5, -0.25, 0.0), (1.5, 2.0, -1.0))
"""The heatmap of each explanation."""


def explanation_message(request: pb.ExplainRequest) -> pb.ExplainResponse:
    values = [value for row in HEATMAP for value in row]
    message = pb.ExplainResponse(
        for_class=pb.ClassScore(label=request.class_name or "church", class_id="n1", index=1, probability=0.75),
        served_probability=0.6875,
        served_precision="int8",
        layer="relu5" if request.layer == "last" else request.layer,
        method=request.method,
        heatmap=pb.HeatMap(height=2, width=3, data=struct.pack(f"<{len(values)}f", *values)),
        score=4.0,
        overlay_png=png((90, 30, 20)),
        scale=2.0,
        source_box=None if request.image.HasField("reference") else pb.Box(left=0, top=0, right=40, bottom=30),
        model=MODEL,
    )
    if request.method == pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS:
        message.baseline_score, message.completeness_gap = 1.0, 0.25
    return message


@contextmanager
def listening(
    service: FakeVisionService,
    address: str = "127.0.0.1:0",
    credentials: grpc.ServerCredentials | None = None,
    health: HealthServicer | None = None,
) -> Iterator[int]:
    """Serves on `address`, with `health` if it is given. Yields the port."""
    # There are as many threads as calls, so that a call that waits does not block others.
    with ThreadPoolExecutor(32) as threads:
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        add_VisionServiceServicer_to_server(service, server)
        if health is not None:
            add_HealthServicer_to_server(health, server)
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
        server.start()
        try:
            yield port
        finally:
            service.open.set()
            server.stop(None).wait()
