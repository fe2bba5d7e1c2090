"""Serves the companion models of the Open Inference Protocol: `NAME.project` and `NAME.explain`.

They give clients that know this protocol only what `Project` and `Explain` of the model NAME give. A request has the
inputs of NAME, with one image, and the options as parameters. The answer is output tensors. `inference_service` uses
this module.
"""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_runtime.access.authorizer import require_permission
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.interceptor import count_as
from zfserve_runtime.grpc.method_handlers import Context

from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.classification import ClassificationPipeline
from zfserve_server.requests.image_decoder import Image
from zfserve_server.requests.inference_companion_answers import explanation_tensors, projection_tensors, shape_of
from zfserve_server.requests.inference_companion_metadata import COMPANIONS, PROJECT_COMPANION, Companion
from zfserve_server.requests.inference_companion_requests import (
    read_companion_outputs,
    read_explain_request,
    read_project_request,
)
from zfserve_server.requests.inference_outputs import TensorValues, add_tensor
from zfserve_server.requests.inference_parameters import choose_priority, narrow_deadline, refuse_sequences, wants_typed
from zfserve_server.requests.inference_tensors import check_input, is_typed, read_rows
from zfserve_server.requests.projection_pipeline import AdmittedProjection, ProjectionPipeline


class CompanionModels:
    """Answers the requests to companion models."""

    def __init__(self, pipeline: ClassificationPipeline, projections: ProjectionPipeline) -> None:
        self._pipeline = pipeline
        self._projections = projections

    async def infer(
        self,
        companion: Companion,
        model: ServedModel,
        request: pb.ModelInferRequest,
        context: Context,
        call_deadline: Deadline,
    ) -> pb.ModelInferResponse:
        """Answers one request.

        The parameter `timeout` bounds the whole answer, because the worker computes in no queue of the server.

        Raises:
            PermissionDenied: the caller may not call the method for which the companion stands.
            ServiceError: see `check_input`, `read_project_request`, `read_explain_request` and `ProjectionPipeline`.
        """
        count_as(companion.method)  # it takes much longer than a classification
        require_permission(companion.method)
        caller = choose_priority(request, self._pipeline.identify(context))
        deadline = narrow_deadline(request, call_deadline)
        refuse_sequences(request)
        check_input(request, model.manifest.input, max_images=1)
        wanted, typed = read_companion_outputs(request, companion), wants_typed(request)
        answer = self._project if companion is PROJECT_COMPANION else self._explain
        with self._projections.admitted(model, caller, deadline) as admitted:
            rows = await asyncio.to_thread(read_rows, request) if is_typed(request) else read_rows(request)
            tensors = await answer(admitted, request, rows[0])
        response = pb.ModelInferResponse(
            model_name=companion.name_for(model.manifest), model_version=model.manifest.version, id=request.id
        )
        for name in wanted:
            add_tensor(response, name, shape_of(tensors[name]), tensors[name], typed)
        return response

    def is_ready(self, companion: Companion, model: ServedModel) -> bool:
        """Returns True if the companion would answer a request now."""
        return companion.exists_for(model.manifest) and not self._projections.obstacle(model.manifest)

    def index_entries(self, model: ServedModel) -> Iterator[pb.RepositoryIndexResponse.ModelIndex]:
        """Yields an entry of the repository's index for each companion of a model that is ready.

        There is none on a server that is meant to have no worker.
        """
        if not self._projections.has_worker:
            return
        reason = self._projections.obstacle(model.manifest)
        for companion in COMPANIONS:
            if companion.exists_for(model.manifest):
                yield pb.RepositoryIndexResponse.ModelIndex(
                    name=companion.name_for(model.manifest),
                    version=model.manifest.version,
                    state="UNAVAILABLE" if reason else "READY",
                    reason=reason,
                )

    async def _project(
        self, admitted: AdmittedProjection, request: pb.ModelInferRequest, image: Image
    ) -> dict[str, TensorValues]:
        message = read_project_request(request)
        async with aclosing(self._projections.project(admitted, message, image)) as projections:
            return projection_tensors([projection async for projection in projections])

    async def _explain(
        self, admitted: AdmittedProjection, request: pb.ModelInferRequest, image: Image
    ) -> dict[str, TensorValues]:
        return explanation_tensors(await self._projections.explain(admitted, read_explain_request(request), image))
