"""The public service: each handler walks the same way, admission, decoding, engine or worker, reply. Built by `app`."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict

from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceServicer
from zfserve_runtime.errors import InvalidInput, WorkerUnavailable
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.method_handlers import Context
from zfserve_runtime.projection_request import check_projection_request
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.admission.admission import Admission
from zfserve_server.admission.senders import Senders
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.models.registry import ModelRegistry, ModelState, ModelStatus
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.decoding import Decoding, Photo
from zfserve_server.requests.projection import add_source_box, check_projection, worker_request
from zfserve_server.worker.client import WorkerClient

DEFAULT_TOP_K = 5

PROJECTIONS = 32
"""Project calls accepted and not answered; the worker has a shorter queue of its own. Classification has its own bound
for each model, so that projections that pile up behind a stuck worker leave room for it. What one will cost nobody
knows before it is done, and its results come one by one, so a deadline is no reason to refuse it."""


class VisionService(VisionServiceServicer):
    """`zfserve.v1.VisionService`.

    Args:
        worker: None refuses projections.
    """

    def __init__(
        self,
        models: ModelRegistry,
        decoding: Decoding,
        senders: Senders,
        worker: WorkerClient | None,
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._projection_pace = ServiceRate()
        self._admission = Admission(PROJECTIONS, self._projection_pace)
        self._decoding = decoding
        self._senders = senders
        self._worker = worker
        self._metrics = metrics

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802
        deadline = Deadline.of(context)
        model = self._find(request)
        sender = self._senders.recognise(context)
        with model.metrics.statistics.request() as counted, model.admission.admit(sender, deadline):
            top_k = choose_top_k(request, len(model.manifest.classes))
            photo = await self._decoding.load(request.image, model.manifest)
            answer = await model.batcher.submit(photo.image.pixels, deadline, sender)
            counted.inferred(photo.decode_s, answer.queue_s, answer.inference_s)
            response = pb.ClassifyResponse(
                model=model.identity,
                image_reference=self._decoding.keep(photo, model.manifest),
                timings=pb.Timings(
                    decode_ms=photo.decode_s * 1e3,
                    queue_ms=answer.queue_s * 1e3,
                    inference_ms=answer.inference_s * 1e3,
                    batch_size=answer.batch_size,
                ),
            )
            model.add_best_classes(response, answer.probabilities, top_k)
            if request.include_features:
                response.features.extend(answer.features.tolist())
            asyncio.get_running_loop().call_soon(
                self._observe, model, photo, answer
            )  # runs when the answer is on its way
            return response

    def _find(self, request: pb.ClassifyRequest | pb.ProjectRequest) -> ServedModel:
        """The model that is asked for; where none is, and the image is a reference, the one that gave it out."""
        selector, reference = request.model, request.image.reference
        if reference and not selector.name and not selector.version:
            return self._models.find_equivalent(self._decoding.model_of(reference))
        return self._models.find(selector.name, selector.version)

    def _observe(self, model: ServedModel, photo: Photo, answer: InferenceResult) -> None:
        self._metrics.decode_seconds.observe(photo.decode_s)
        model.metrics.queue_seconds.observe(answer.queue_s)

    async def Project(  # noqa: N802
        self, request: pb.ProjectRequest, context: Context
    ) -> AsyncIterator[pb.ProjectResponse]:
        deadline = Deadline.of(context)
        model = self._find(request)
        manifest = model.manifest
        with model.projecting, self._admission.admit(self._senders.recognise(context)):
            began, under_way = time.monotonic(), self._admission.accepted
            check_projection_request(request, manifest)
            if self._worker is None:
                raise WorkerUnavailable("this server runs without a projection worker; start it with one")
            await self._worker.require(manifest.fingerprint)
            photo = await self._decoding.load(request.image, manifest)
            forwarded = worker_request(request, photo.image, manifest)
            async with aclosing(self._worker.project(forwarded, deadline)) as projections:
                async for projection in projections:
                    check_projection(projection, request.layer, manifest)
                    projection.model.CopyFrom(model.identity)  # another version may have the same weights
                    add_source_box(projection, photo.image)
                    yield projection
            self._projection_pace.observe(1, (time.monotonic() - began) / under_way)

    async def DescribeModel(  # noqa: N802
        self, request: pb.DescribeModelRequest, context: Context
    ) -> pb.DescribeModelResponse:
        model = self._models.find(request.model.name, request.model.version)
        projectable = self._worker is not None and self._worker.holds(model.manifest.fingerprint)
        description = model.describe(projectable)
        name = model.manifest.name
        description.versions.extend(_status(status) for status in self._models.statuses() if status.name == name)
        return description

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[_status(status) for status in self._models.statuses()])


_STATES = {
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
    ModelState.RETIRING: pb.MODEL_STATE_RETIRING,
}


def _status(status: ModelStatus) -> pb.ModelStatus:
    return pb.ModelStatus(**asdict(status) | {"state": _STATES[status.state]})


def choose_top_k(request: pb.ClassifyRequest, classes: int) -> int:
    """How many classes to answer. Raises InvalidInput where `top_k` is 0 or more than there are."""
    if not request.HasField("top_k"):
        return min(DEFAULT_TOP_K, classes)
    if not 1 <= request.top_k <= classes:
        raise InvalidInput(f"top_k is {request.top_k}; choose 1 to {classes}, or leave it out", field="top_k")
    return request.top_k
