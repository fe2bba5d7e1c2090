"""The service `zfserve.v1.VisionService`. It converts messages and calls the two pipelines.

Its studies are in `study_service`.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict

from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.method_handlers import Context

from zfserve_server.models.registry import ModelRegistry, ModelState, ModelStatus
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.classification import AdmittedRequest, ClassificationPipeline
from zfserve_server.requests.projection_pipeline import ProjectionPipeline
from zfserve_server.requests.study_service import StudyService

DEFAULT_TOP_K = 5


class VisionService(StudyService):
    """Serves `zfserve.v1.VisionService`, whose methods zfserve.proto describes.

    Args:
        projections: answers Project and Explain, and finds the worker that chooses maps for a class.
    """

    def __init__(
        self, models: ModelRegistry, pipeline: ClassificationPipeline, projections: ProjectionPipeline
    ) -> None:
        super().__init__(pipeline, projections)
        self._models = models

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
        with self._projections.admitted(model, self._pipeline.identify(context), deadline) as admitted:
            async with aclosing(self._projections.project(admitted, request, request.image)) as projections:
                async for projection in projections:
                    yield projection

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:  # noqa: N802
        deadline = Deadline.of(context)
        model = self._find_model(request)
        with self._projections.admitted(model, self._pipeline.identify(context), deadline) as admitted:
            return await self._projections.explain(admitted, request, request.image)

    async def DescribeModel(  # noqa: N802
        self, request: pb.DescribeModelRequest, context: Context
    ) -> pb.DescribeModelResponse:
        model = self._models.find(request.model.name, request.model.version)
        description = model.describe(not self._projections.obstacle(model.manifest))
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
