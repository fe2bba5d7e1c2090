"""Serves the studies of `zfserve.v1.VisionService`: Activations, Occlude, Ablate and Transform.

Each method takes the same steps: find the model, identify the caller, admit the study, validate the request, decode,
and run the study. `zfserve_server.studies` has the studies.
"""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace

from zfserve_engines.images.input_image import InputImage
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceServicer
from zfserve_runtime.errors import EngineFailed, InvalidInput, NotFound
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.method_handlers import Context

from zfserve_server.admission.admission import Admission
from zfserve_server.admission.caller_identity import Priority
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.classification import ClassificationPipeline
from zfserve_server.requests.image_decoder import Photo
from zfserve_server.requests.projection import check_projection, projection_request
from zfserve_server.requests.projection_pipeline import ProjectionPipeline
from zfserve_server.studies.ablation import SpeakingMaps, ablate
from zfserve_server.studies.ablation_request import AblationSettings, validate_ablate_request
from zfserve_server.studies.activations import read_activations, validate_activations_request
from zfserve_server.studies.limits import MAX_STUDIES
from zfserve_server.studies.occlusion import occlude
from zfserve_server.studies.occlusion_request import validate_occlude_request
from zfserve_server.studies.running import StudyCall
from zfserve_server.studies.transformation import transform
from zfserve_server.studies.transformation_request import validate_transform_request
from zfserve_server.worker.client import WorkerClient


class StudyService(VisionServiceServicer):
    """Serves the studies, which zfserve.proto describes.

    Args:
        projections: finds the worker that chooses the maps for a class.
    """

    def __init__(self, pipeline: ClassificationPipeline, projections: ProjectionPipeline) -> None:
        self._pipeline = pipeline
        self._projections = projections
        self._study_rate = ServiceRate()
        self._study_admission = Admission(MAX_STUDIES, self._study_rate, "studies")

    async def Activations(  # noqa: N802
        self, request: pb.ActivationsRequest, context: Context
    ) -> AsyncIterator[pb.ActivationsResponse]:
        reference = request.images[0].reference if request.images else ""
        with self._admitted("activations", request.model, reference, context) as call:
            settings = validate_activations_request(request, call.model.manifest)
            photos = await self._decode_each(request.images, call.model)
            pixels = [photo.image.pixels for photo in photos]
            async with aclosing(read_activations(call, settings, pixels)) as messages:
                async for message in messages:
                    yield message

    async def Occlude(  # noqa: N802
        self, request: pb.OccludeRequest, context: Context
    ) -> AsyncIterator[pb.OccludeResponse]:
        with self._admitted("occlude", request.model, request.image.reference, context) as call:
            settings = validate_occlude_request(request, call.model.manifest)
            photo = await self._pipeline.decode(request.image, call.model)
            async with aclosing(occlude(call, settings, photo.image)) as messages:
                async for message in messages:
                    yield message

    async def Ablate(  # noqa: N802
        self, request: pb.AblateRequest, context: Context
    ) -> AsyncIterator[pb.AblateResponse]:
        with self._admitted("ablate", request.model, request.image.reference, context) as call:
            settings = validate_ablate_request(request, call.model.manifest)
            worker = await self._projections.require_worker(call.model.manifest) if settings.for_class else None
            photo = await self._pipeline.decode(request.image, call.model)
            speaking = await _choose_for_class(worker, call, settings, photo.image) if worker else None
            async with aclosing(ablate(call, settings, photo.image, speaking)) as messages:
                async for message in messages:
                    yield message

    async def Transform(  # noqa: N802
        self, request: pb.TransformRequest, context: Context
    ) -> AsyncIterator[pb.TransformResponse]:
        with self._admitted("transform", request.model, request.image.reference, context) as call:
            settings = validate_transform_request(request, call.model.manifest)
            photo = await self._pipeline.decode(request.image, call.model)
            async with aclosing(transform(call, settings, photo.image)) as messages:
                async for message in messages:
                    yield message

    @contextmanager
    def _admitted(
        self, study: str, selector: pb.ModelSelector, reference: str, context: Context
    ) -> Iterator[StudyCall]:
        """Finds the model, identifies the caller and holds a place among the studies while the block runs.

        Args:
            reference: the reference of the first photo; empty if the request carries it.

        Raises:
            Overloaded: there is no place for another study.
            ServiceError: see `ClassificationPipeline.find_model` and `identify`.
        """
        deadline = Deadline.of(context)
        model = self._pipeline.find_model(selector.name, selector.version, reference)
        caller = self._pipeline.identify(context)
        # The places are only for studies, so a caller with bulk priority has the same right to them.
        equal = replace(caller, priority=Priority.INTERACTIVE)
        with model.studies_in_flight, self._study_admission.admit(equal):
            began, in_flight = time.monotonic(), self._study_admission.in_flight
            try:
                yield StudyCall(study, model, replace(caller, priority=Priority.BULK), deadline)
            finally:
                seconds = time.monotonic() - began
                model.metrics.study_seconds(study).observe(seconds)
                # Studies take turns at the engine, so this one had about this share of its time.
                self._study_rate.observe(1, seconds / in_flight)

    async def _decode_each(self, images: Sequence[pb.Image], model: ServedModel) -> list[Photo]:
        """Returns the photos as inputs of the model, in order. An image that cannot be used is named by its index.

        They are decoded one by one, because all calls share the decoder's threads and interactive calls come first.
        """
        photos = []
        for index, image in enumerate(images):
            try:
                photos.append(await self._pipeline.decode(image, model))
            except (InvalidInput, NotFound) as error:
                raise type(error)(f"image {index}: {error.message}", field="images") from error
        return photos


async def _choose_for_class(
    worker: WorkerClient, call: StudyCall, settings: AblationSettings, image: InputImage
) -> SpeakingMaps:
    """Asks the worker for the maps that add most to the score of a class, as `Project` does."""
    manifest = call.model.manifest
    layer = manifest.layer(settings.layer.name)
    assert layer is not None, "the request was validated against this manifest"
    project = pb.ProjectRequest(for_class=settings.for_class)
    request = projection_request(project, image, layer, manifest)
    projections = []
    async with aclosing(worker.project(request, call.deadline)) as answers:
        async for projection in answers:
            check_projection(projection, layer, manifest)
            projections.append(projection)
    if not projections or projections[0].for_class.index >= len(manifest.classes):
        raise EngineFailed("the worker's answer to this choice of maps makes no sense; try again")
    return SpeakingMaps(
        tuple(projection.map for projection in projections),
        tuple(projection.attribution for projection in projections),
        projections[0].for_class,
    )
