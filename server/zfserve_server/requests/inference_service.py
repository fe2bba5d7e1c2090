"""The service of the Open Inference Protocol, with Triton's extensions, for standard clients. Built by `grpc_server`.

It converts messages and calls the classification pipeline. docs/open-inference-protocol.md says which parts of the
protocol are served.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import DecodeError
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from zfserve_protos.methods import MODEL_STREAM_INFER
from zfserve_runtime.errors import ServiceError, ShuttingDown, Unimplemented
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.health import SERVER, Health
from zfserve_runtime.grpc.method_handlers import Context
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.models.registry import ModelRegistry
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.classification import AdmittedRequest, ClassificationPipeline
from zfserve_server.requests.inference_companion_metadata import (
    Companion,
    configure_companion,
    describe_companion,
    split_name,
)
from zfserve_server.requests.inference_companions import CompanionModels
from zfserve_server.requests.inference_metadata import (
    configure_model,
    describe_model,
    describe_server,
    describe_statistics,
    index_entry,
)
from zfserve_server.requests.inference_outputs import add_outputs, read_outputs
from zfserve_server.requests.inference_parameters import choose_priority, narrow_deadline, refuse_sequences, wants_typed
from zfserve_server.requests.inference_tensors import FILE_INPUT, check_input, is_typed, read_rows
from zfserve_server.requests.projection_pipeline import ProjectionPipeline

STREAM_DEPTH = 32
"""The largest number of requests of one stream that are in flight. The next one is read once the oldest is answered."""

NEWEST = "-1"
"""Triton's clients may send this for the newest version."""


def _unimplemented(sentence: str) -> Any:
    """Returns a method that refuses every call with `sentence`."""

    async def refuse(self: object, request: object, context: Context) -> None:
        raise Unimplemented(sentence)

    return refuse


class InferenceService(GRPCInferenceServiceServicer):
    """Serves `inference.GRPCInferenceService`.

    Args:
        health: the health of the process. `ServerReady` repeats it.
    """

    def __init__(
        self,
        models: ModelRegistry,
        pipeline: ClassificationPipeline,
        projections: ProjectionPipeline,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._models = models
        self._pipeline = pipeline
        self._companions = CompanionModels(pipeline, projections)
        self._health = health
        self._metrics = metrics

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        return await self._infer(request, context, Deadline.of(context))

    async def _infer(
        self, request: pb.ModelInferRequest, context: Context, call_deadline: Deadline
    ) -> pb.ModelInferResponse:
        model, companion = self._find_companion(request.model_name, request.model_version)
        if companion is not None:
            return await self._companions.infer(companion, model, request, context, call_deadline)
        with model.metrics.statistics.request() as counted:
            caller = choose_priority(request, self._pipeline.identify(context))
            deadline = narrow_deadline(request, call_deadline)
            refuse_sequences(request)
            manifest = model.manifest
            images = check_input(request, manifest.input, model.choice.instances[0].info.max_batch_size)
            wanted, typed = read_outputs(request, manifest), wants_typed(request)
            # Admission uses the call's deadline. The parameter `timeout` bounds only the wait in the queue.
            with model.admission.admit(caller, call_deadline, images):
                rows = await asyncio.to_thread(read_rows, request) if is_typed(request) else read_rows(request)
                admitted = AdmittedRequest(model, caller, deadline, counted)
                classified = await self._pipeline.classify_each(admitted, rows, field=f"inputs[{FILE_INPUT}]")
                response = pb.ModelInferResponse(
                    model_name=manifest.name, model_version=manifest.version, id=request.id
                )
                add_outputs(response, wanted, [each.result for each in classified], manifest, typed)
                return response

    async def ModelStreamInfer(  # type: ignore[override] # noqa: N802 - the stubs know of generators only
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> None:
        """Serves the requests of a stream concurrently, and answers them in order.

        A request that fails is answered by an error message, and the stream goes on. A server that drains answers the
        requests that it has read and ends the stream.
        """
        deadline = Deadline.of(context)
        pending: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue()
        slots = asyncio.Semaphore(STREAM_DEPTH)
        read_error: DecodeError | ServiceError | None = None

        async def read() -> None:
            nonlocal read_error
            try:
                async for request in request_iterator:
                    await slots.acquire()
                    pending.put_nowait(tasks.create_task(self._answer_in_stream(request, context, deadline)))
            except (DecodeError, ServiceError) as error:  # a malformed request, or a permission that was revoked
                read_error = error

        async def read_until_drained() -> None:
            reading, draining = tasks.create_task(read()), tasks.create_task(self._health.wait_watches_ended())
            await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            draining.cancel()
            pending.put_nowait(None)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read_until_drained())
            while (answer := await pending.get()) is not None:
                await context.write(await answer)
                slots.release()
        if read_error is not None:
            raise read_error
        if self._health.watches_ended:
            raise ShuttingDown("the service is shutting down; open a new stream to another instance")

    def _find_model(self, name: str, version: str) -> ServedModel:
        return self._pipeline.find_model(name, "" if version == NEWEST else version)

    def _find_companion(self, name: str, version: str) -> tuple[ServedModel, Companion | None]:
        """Returns the model, and the companion of it that `name` names, or None if it names the model itself."""
        base, companion = split_name(name, self._models)
        return self._find_model(base, version), companion

    async def _answer_in_stream(
        self, request: pb.ModelInferRequest, context: Context, deadline: Deadline
    ) -> pb.ModelStreamInferResponse:
        try:
            answer = await self._infer(request, context, deadline)
        except ServiceError as error:
            self._metrics.refusals.labels(MODEL_STREAM_INFER, error.reason).inc()
            failed = pb.ModelInferResponse(
                model_name=request.model_name, model_version=request.model_version, id=request.id
            )
            return pb.ModelStreamInferResponse(error_message=error.message, infer_response=failed)
        answer.parameters["triton_final_response"].bool_param = True  # a request has only one response
        return pb.ModelStreamInferResponse(infer_response=answer)

    async def ServerLive(  # noqa: N802
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        self._health.queried = True
        return pb.ServerReadyResponse(ready=self._health.is_serving(SERVER))

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """Answers False also for a model that does not exist, as Triton does."""
        try:
            model, companion = self._find_companion(request.name, request.version)
        except ServiceError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=companion is None or self._companions.is_ready(companion, model))

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return describe_server()

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        model, companion = self._find_companion(request.name, request.version)
        versions = [each.manifest.version for each in self._models if each.manifest.name == model.manifest.name]
        if companion is not None:
            return describe_companion(companion, model.manifest, versions)
        return describe_model(model, versions)

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        model, companion = self._find_companion(request.name, request.version)
        if companion is not None:
            return pb.ModelConfigResponse(config=configure_companion(companion, model.manifest))
        return pb.ModelConfigResponse(config=configure_model(model))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Describes versions that are ready: all of them, or those with the name and version of the request."""
        if request.name:
            _, companion = self._find_companion(request.name, request.version)  # raises NotFound for an unknown model
            if companion is not None:
                raise Unimplemented(
                    f"{request.name} has no statistics; the metrics of the method {companion.method} count its requests"
                )
        return pb.ModelStatisticsResponse(
            model_stats=[
                describe_statistics(model)
                for model in self._models
                if request.name in ("", model.manifest.name) and request.version in ("", model.manifest.version)
            ]
        )

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        served = {(model.manifest.name, model.manifest.version): model for model in self._models}
        entries: list[pb.RepositoryIndexResponse.ModelIndex] = []
        for status in self._models.statuses():
            entries.append(index_entry(status))
            if (model := served.get((status.name, status.version))) is not None:
                entries.extend(self._companions.index_entries(model))
        return pb.RepositoryIndexResponse(
            models=[entry for entry in entries if entry.state == "READY" or not request.ready]
        )

    RepositoryModelLoad = RepositoryModelUnload = _unimplemented(
        "calls cannot load or unload models; put versions into the model's folder or remove them"
    )
    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _unimplemented(
        "system shared memory is not supported; send tensors in the request"
    )
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _unimplemented(
        "CUDA shared memory is not supported; send tensors in the request"
    )
    TraceSetting = _unimplemented("traces are set by the server's flags --otlp-endpoint and --trace-ratio")
    LogSettings = _unimplemented("logs are set by the server's flag --log-format")
