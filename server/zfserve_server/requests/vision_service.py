"""The service `zfserve.v1.VisionService`. It converts messages and calls the classification pipeline.

Its studies are in `study_service`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict

from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.method_handlers import Context
from zfserve_runtime.projection_validation import validate_explanation_request, validate_projection_request

from zfserve_server.admission.admission import Admission
from zfserve_server.admission.caller_identity import CallerIdentity
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.models.registry import ModelRegistry, ModelState, ModelStatus
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.classification import AdmittedRequest, ClassificationPipeline, ClassifiedPhoto
from zfserve_server.requests.explanation import check_explanation, complete_explanation, explanation_request
from zfserve_server.requests.image_decoder import Photo
from zfserve_server.requests.projection import check_projection, complete_projection, projection_request
from zfserve_server.requests.study_service import StudyService
from zfserve_server.worker.client import WorkerClient

DEFAULT_TOP_K = 5

MAX_PROJECTIONS = 32
"""The largest number of Project and Explain calls in flight. The worker has a shorter queue of its own. Calls that wait
for a stuck worker take no place from classifications, because each model bounds those by itself. None is refused for
its deadline, because its cost is unknown until it is done, and the results of a projection come one by one."""


class VisionService(StudyService):
    """Serves `zfserve.v1.VisionService`, whose methods zfserve.proto describes.

    Args:
        worker: computes projections and explanations, and chooses maps for a class; None refuses that.
    """

    def __init__(self, models: ModelRegistry, pipeline: ClassificationPipeline, worker: WorkerClient | None) -> None:
        super().__init__(pipeline, worker)
        self._models = models
        self._projection_rate = ServiceRate()
        self._projection_admission = Admission(MAX_PROJECTIONS, self._projection_rate)

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802
        deadline = Deadline.of(context)
        model = self._find_model(request)
        caller = self._pipeline.identify(context)
        with model.metrics.statistics.request() as counted, model.admission.admit(caller, deadline):
            top_k = choose_top_k(request, len(model.manifest.classes))
            if request.include_features and not model.manifest.feature_width:
                raise InvalidInput(
                    "this network has no features, because it does not end in a linear layer; "
                    "leave include_features out",
                    field="include_features",
                )
            admitted = AdmittedRequest(model, caller, deadline, counted)
            photo, result = await self._pipeline.classify(admitted, request.image)
            response = pb.ClassifyResponse(
                model=model.identity,
                image_reference=self._pipeline.keep(photo, model),
                features=result.features.tolist() if request.include_features else None,
                timings=pb.Timings(
                    decode_ms=photo.decode_s * 1e3,
                    queue_ms=result.queue_s * 1e3,
                    inference_ms=result.inference_s * 1e3,
                    batch_size=result.batch_size,
                ),
            )
            model.add_best_classes(response, result.probabilities, top_k)
            return response

    async def Project(  # noqa: N802
        self, request: pb.ProjectRequest, context: Context
    ) -> AsyncIterator[pb.ProjectResponse]:
        deadline = Deadline.of(context)
        model = self._find_model(request)
        manifest = model.manifest
        caller = self._pipeline.identify(context)
        with model.projections_in_flight, self._projection_admission.admit(caller):
            began, in_flight = time.monotonic(), self._projection_admission.in_flight
            layer = validate_projection_request(request, manifest)
            worker = await self._require_worker(manifest)
            photo = await self._pipeline.decode(request.image, model)
            forwarded = projection_request(request, photo.image, layer, manifest)
            async with aclosing(worker.project(forwarded, deadline)) as projections:
                async for projection in projections:
                    check_projection(projection, layer, manifest)
                    complete_projection(projection, photo.image, layer, model)
                    yield projection
            # The worker serves its calls in turns, so this call had about this share of the worker's time.
            self._projection_rate.observe(1, (time.monotonic() - began) / in_flight)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:  # noqa: N802
        deadline = Deadline.of(context)
        model = self._find_model(request)
        manifest = model.manifest
        caller = self._pipeline.identify(context)
        with model.projections_in_flight, self._projection_admission.admit(caller):
            began, in_flight = time.monotonic(), self._projection_admission.in_flight
            layer = validate_explanation_request(request, manifest)
            worker = await self._require_worker(manifest)
            photo = await self._pipeline.decode(request.image, model)
            forwarded = explanation_request(request, photo.image, layer, manifest)
            # The engine may compute in another precision than the worker, so the answer shows both probabilities.
            serving = asyncio.ensure_future(self._classify(model, caller, deadline, photo))
            explaining = asyncio.ensure_future(worker.explain(forwarded, deadline))
            try:
                served, explanation = await asyncio.gather(serving, explaining)
            finally:
                serving.cancel()
                explaining.cancel()
            check_explanation(explanation, layer, manifest)
            complete_explanation(explanation, photo.image, served.result, layer, model)
            self._projection_rate.observe(1, (time.monotonic() - began) / in_flight)
            return explanation

    async def DescribeModel(  # noqa: N802
        self, request: pb.DescribeModelRequest, context: Context
    ) -> pb.DescribeModelResponse:
        model = self._models.find(request.model.name, request.model.version)
        projectable = self._worker is not None and self._worker.holds(model.manifest.fingerprint)
        description = model.describe(projectable)
        name = model.manifest.name
        description.versions.extend(
            _convert_status(status) for status in self._models.statuses() if status.name == name
        )
        return description

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[_convert_status(status) for status in self._models.statuses()])

    def _find_model(self, request: pb.ClassifyRequest | pb.ProjectRequest | pb.ExplainRequest) -> ServedModel:
        return self._pipeline.find_model(request.model.name, request.model.version, request.image.reference)

    async def _classify(
        self, model: ServedModel, caller: CallerIdentity, deadline: Deadline, photo: Photo
    ) -> ClassifiedPhoto:
        """Classifies a decoded photo. It takes a place among the model's images in flight until it has the result.

        Raises:
            Overloaded: the model has no place for the image, or its answer would come too late.
        """
        with model.metrics.statistics.request() as counted, model.admission.admit(caller, deadline):
            return await self._pipeline.classify_decoded(AdmittedRequest(model, caller, deadline, counted), photo)


_STATES = {
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
    ModelState.RETIRING: pb.MODEL_STATE_RETIRING,
}


def _convert_status(status: ModelStatus) -> pb.ModelStatus:
    return pb.ModelStatus(**asdict(status) | {"state": _STATES[status.state]})


def choose_top_k(request: pb.ClassifyRequest, classes: int) -> int:
    """Returns the number of classes in the answer.

    Args:
        classes: the number of classes that the model has.

    Raises:
        InvalidInput: `top_k` is 0 or larger than `classes`.
    """
    if not request.HasField("top_k"):
        return min(DEFAULT_TOP_K, classes)
    if not 1 <= request.top_k <= classes:
        raise InvalidInput(f"top_k is {request.top_k}; choose 1 to {classes}, or leave it out", field="top_k")
    return request.top_k
