"""The projection pipeline: the steps of every request that a worker answers, in order. Both services call it.

1. A service finds the model and identifies the caller, as for a classification.
2. `admitted` accepts or refuses the request. Steps 1 and 2 run without an `await`, so that the version cannot be
   retired between them.
3. `project` and `explain` validate the request, require a paired worker, decode the photo, forward the request, and
   check and complete the answers.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import ServiceError, WorkerUnavailable
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.projection_validation import validate_explanation_request, validate_projection_request

from zfserve_server.admission.admission import Admission
from zfserve_server.admission.caller_identity import CallerIdentity
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.classification import AdmittedRequest, ClassificationPipeline, ClassifiedPhoto
from zfserve_server.requests.explanation import check_explanation, complete_explanation, explanation_request
from zfserve_server.requests.image_decoder import Image, Photo
from zfserve_server.requests.projection import check_projection, complete_projection, projection_request
from zfserve_server.worker.client import WorkerClient

MAX_PROJECTIONS = 32
"""The largest number of requests for projections and explanations in flight. The worker has a shorter queue of its own.
Calls that wait for a stuck worker take no place from classifications, because each model bounds those by itself. None
is refused for its deadline, because its cost is unknown until it is done, and the results of a projection come one by
one."""


@dataclass(frozen=True, slots=True)
class AdmittedProjection:
    """Holds what the pipeline needs to know of a request.

    Attributes:
        deadline: the worker's answer after it is of no use.
    """

    model: ServedModel
    caller: CallerIdentity
    deadline: Deadline


class ProjectionPipeline:
    """Takes requests for projections and explanations through the steps that the module lists.

    Args:
        worker: computes projections and explanations; None refuses them.
    """

    def __init__(self, pipeline: ClassificationPipeline, worker: WorkerClient | None) -> None:
        self._pipeline = pipeline
        self._worker = worker
        self._rate = ServiceRate()
        self._admission = Admission(MAX_PROJECTIONS, self._rate)

    @contextmanager
    def admitted(self, model: ServedModel, caller: CallerIdentity, deadline: Deadline) -> Iterator[AdmittedProjection]:
        """Holds a place for the request while the block runs.

        Raises:
            Overloaded: there is no place for another request.
        """
        with model.projections_in_flight, self._admission.admit(caller):
            began, in_flight = time.monotonic(), self._admission.in_flight
            yield AdmittedProjection(model, caller, deadline)
            # The worker serves its calls in turns, so this call had about this share of the worker's time.
            self._rate.observe(1, (time.monotonic() - began) / in_flight)

    async def project(
        self, admitted: AdmittedProjection, request: pb.ProjectRequest, image: Image
    ) -> AsyncGenerator[pb.ProjectResponse, None]:
        """Yields the projections. Closing the iterator early stops the work.

        Args:
            image: the photo. The photo of `request` is not read.

        Raises:
            ServiceError: see `validate_projection_request`, `require_worker`, `ClassificationPipeline.decode` and
                `WorkerClient.project`.
        """
        model = admitted.model
        manifest = model.manifest
        layer = validate_projection_request(request, manifest)
        worker = await self.require_worker(manifest)
        photo = await self._pipeline.decode(image, model)
        forwarded = projection_request(request, photo.image, layer, manifest)
        async with aclosing(worker.project(forwarded, admitted.deadline)) as projections:
            async for projection in projections:
                check_projection(projection, layer, manifest)
                complete_projection(projection, photo.image, layer, model)
                yield projection

    async def explain(
        self, admitted: AdmittedProjection, request: pb.ExplainRequest, image: Image
    ) -> pb.ExplainResponse:
        """Returns the explanation, with the probability that the serving engine gives.

        Args:
            image: the photo. The photo of `request` is not read.

        Raises:
            Overloaded: the model has no place for the image, or its answer would come too late.
            ServiceError: see `validate_explanation_request`, `require_worker`, `ClassificationPipeline.decode` and
                `WorkerClient.explain`.
        """
        model = admitted.model
        manifest = model.manifest
        layer = validate_explanation_request(request, manifest)
        worker = await self.require_worker(manifest)
        photo = await self._pipeline.decode(image, model)
        forwarded = explanation_request(request, photo.image, layer, manifest)
        # The engine may compute in another precision than the worker, so the answer shows both probabilities.
        serving = asyncio.ensure_future(self._classify(admitted, photo))
        explaining = asyncio.ensure_future(worker.explain(forwarded, admitted.deadline))
        try:
            served, explanation = await asyncio.gather(serving, explaining)
        finally:
            serving.cancel()
            explaining.cancel()
        check_explanation(explanation, layer, manifest)
        complete_explanation(explanation, photo.image, served.result, layer, model)
        return explanation

    async def require_worker(self, manifest: Manifest) -> WorkerClient:
        """Returns the worker. Raises WorkerUnavailable or WorkerMismatch if none can compute for that network."""
        if self._worker is None:
            raise WorkerUnavailable("this server runs without a projection worker; start it with one")
        await self._worker.require(manifest.fingerprint)
        return self._worker

    @property
    def has_worker(self) -> bool:
        """True if the server is meant to have a worker, also while none answers."""
        return self._worker is not None

    def obstacle(self, manifest: Manifest) -> str:
        """Returns the sentence of the error with which a request would be refused now, or "" if a worker is ready."""
        if self._worker is None:
            return "this server runs without a projection worker"
        try:
            self._worker.check(manifest.fingerprint)
        except ServiceError as error:
            return error.message
        return ""

    async def _classify(self, admitted: AdmittedProjection, photo: Photo) -> ClassifiedPhoto:
        """Classifies a decoded photo. It takes a place among the model's images in flight until it has the result.

        Raises:
            Overloaded: the model has no place for the image, or its answer would come too late.
        """
        model, caller, deadline = admitted.model, admitted.caller, admitted.deadline
        with model.metrics.statistics.request() as counted, model.admission.admit(caller, deadline):
            return await self._pipeline.classify_decoded(AdmittedRequest(model, caller, deadline, counted), photo)
