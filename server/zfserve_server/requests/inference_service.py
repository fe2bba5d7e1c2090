"""The Open Inference Protocol with Triton's extensions: requests of standard clients on the same way as Classify's.

Built by `app`. docs/open-inference-protocol.md says what is served of the protocol, and how.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from zfserve_protos.methods import MODEL_STREAM_INFER
from zfserve_runtime.errors import InvalidInput, ServiceError, ShuttingDown, Unimplemented
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.health import SERVER, Health
from zfserve_runtime.grpc.method_handlers import Context
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.admission.senders import Sender, Senders
from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.models.registry import ModelRegistry, ModelState
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.decoding import Decoding
from zfserve_server.requests.inference_metadata import (
    configure_model,
    count_model,
    describe_model,
    describe_server,
    index_entry,
)
from zfserve_server.requests.inference_parameters import choose_priority, narrow_deadline, refuse_sequences, wants_typed
from zfserve_server.requests.inference_tensors import (
    FILE_INPUT,
    add_outputs,
    check_input,
    is_typed,
    read_outputs,
    read_rows,
)

STREAM_DEPTH = 32
"""Requests of one stream that are served at once; the next is read when the first has been answered."""

NEWEST = "-1"
"""A version as Triton's clients may name the newest."""


class _Row(NamedTuple):
    """One image of a request, answered."""

    decode_s: float
    answer: InferenceResult

    @property
    def seconds(self) -> float:
        return self.decode_s + self.answer.queue_s + self.answer.inference_s


def _refusing(sentence: str) -> Any:
    """A method that is left out, and says so."""

    async def refuse(self: object, request: object, context: Context) -> None:
        raise Unimplemented(sentence)

    return refuse


class InferenceService(GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`.

    Args:
        health: of the process, which `ServerReady` repeats.
    """

    def __init__(
        self, models: ModelRegistry, decoding: Decoding, senders: Senders, health: Health, metrics: Metrics
    ) -> None:
        self._models = models
        self._decoding = decoding
        self._senders = senders
        self._health = health
        self._metrics = metrics

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        return await self._infer(request, context, Deadline.of(context))

    async def _infer(
        self, request: pb.ModelInferRequest, context: Context, call_deadline: Deadline
    ) -> pb.ModelInferResponse:
        model = self._find(request.model_name, request.model_version)
        with model.metrics.statistics.request() as counted:
            sender = choose_priority(request, self._senders.recognise(context))
            deadline = narrow_deadline(request, call_deadline)
            refuse_sequences(request)
            manifest = model.manifest
            images = check_input(request, manifest.input, model.choice.instances[0].info.max_batch_size)
            wanted, typed = read_outputs(request, manifest), wants_typed(request)
            # By the call's deadline: the parameter `timeout` bounds the wait alone, which the batcher keeps.
            with model.admission.admit(sender, call_deadline, images):
                contents = await asyncio.to_thread(read_rows, request) if is_typed(request) else read_rows(request)
                rows = await self._answer_rows(model, contents, deadline, sender)
                slowest = max(rows, key=lambda row: row.seconds)
                counted.inferred(slowest.decode_s, slowest.answer.queue_s, slowest.answer.inference_s)
                response = pb.ModelInferResponse(
                    model_name=manifest.name, model_version=manifest.version, id=request.id
                )
                add_outputs(response, wanted, [row.answer for row in rows], manifest, typed)
                asyncio.get_running_loop().call_soon(self._observe, model, rows)  # when the answer is on its way
                return response

    async def _answer_rows(
        self, model: ServedModel, images: Sequence[bytes] | npt.NDArray[np.uint8], deadline: Deadline, sender: Sender
    ) -> Sequence[_Row]:
        """Each image goes to the batcher by itself, so that it shares batches with those of other requests."""
        if len(images) == 1:
            return [await self._answer_row(model, 0, images[0], deadline, sender)]
        answering = [
            asyncio.ensure_future(self._answer_row(model, row, image, deadline, sender))
            for row, image in enumerate(images)
        ]
        try:
            return await asyncio.gather(*answering)
        finally:
            for each in answering:  # where one has failed, the others need no answer
                each.cancel()

    async def _answer_row(
        self, model: ServedModel, row: int, image: bytes | npt.NDArray[np.uint8], deadline: Deadline, sender: Sender
    ) -> _Row:
        if not isinstance(image, bytes):
            return _Row(0.0, await model.batcher.submit(image, deadline, sender))
        try:
            photo = await self._decoding.decode(image, model.manifest.input)
        except InvalidInput as error:
            raise type(error)(f"image {row}: {error.message}", field=f"inputs[{FILE_INPUT}]") from error
        return _Row(photo.decode_s, await model.batcher.submit(photo.image.pixels, deadline, sender))

    def _observe(self, model: ServedModel, rows: Sequence[_Row]) -> None:
        for row in rows:
            self._metrics.decode_seconds.observe(row.decode_s)
            model.metrics.queue_seconds.observe(row.answer.queue_s)

    async def ModelStreamInfer(  # type: ignore[override] # noqa: N802 - the stubs know of generators only
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> None:
        """Requests of one stream are served side by side and answered in their order. One that fails is answered by a
        message and the stream goes on; a server that drains answers what it has read and ends the stream."""
        deadline = Deadline.of(context)
        begun: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_DEPTH)
        fault: DecodeError | ServiceError | None = None

        async def read() -> None:
            nonlocal fault
            try:
                async for request in request_iterator:
                    await room.acquire()
                    begun.put_nowait(tasks.create_task(self._answer_in_stream(request, context, deadline)))
            except (DecodeError, ServiceError) as error:  # it cannot be read, or its caller may not call any more
                fault = error

        async def read_until_drained() -> None:
            reading, draining = tasks.create_task(read()), tasks.create_task(self._health.wait_end())
            await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            draining.cancel()
            begun.put_nowait(None)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read_until_drained())
            while (answering := await begun.get()) is not None:
                await context.write(await answering)
                room.release()
        if fault is not None:
            raise fault
        if self._health.ended:
            raise ShuttingDown("the service is shutting down; open the stream anew, at another instance")

    def _find(self, name: str, version: str) -> ServedModel:
        return self._models.find(name, "" if version == NEWEST else version)

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
        answer.parameters["triton_final_response"].bool_param = True  # of this request; it has no other
        return pb.ModelStreamInferResponse(infer_response=answer)

    async def ServerLive(  # noqa: N802
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        self._health.asked = True
        return pb.ServerReadyResponse(ready=self._health.is_serving(SERVER))

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """Of a model that is not here too the answer is no, as Triton's is."""
        try:
            self._find(request.name, request.version)
        except ServiceError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return describe_server()

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        model = self._find(request.name, request.version)
        return describe_model(
            model,
            [each.manifest.version for each in self._models if each.manifest.name == model.manifest.name],
        )

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config=configure_model(self._find(request.name, request.version)))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Of the versions that are ready: of all models where none is named, of all of a model where no version is."""
        if request.name:
            self._find(request.name, request.version)  # whether there is such a one
        return pb.ModelStatisticsResponse(
            model_stats=[
                count_model(model)
                for model in self._models
                if request.name in ("", model.manifest.name) and request.version in ("", model.manifest.version)
            ]
        )

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        return pb.RepositoryIndexResponse(
            models=[
                index_entry(status)
                for status in self._models.statuses()
                if status.state is ModelState.READY or not request.ready
            ]
        )

    RepositoryModelLoad = RepositoryModelUnload = _refusing(
        "models are not loaded or unloaded by call; put versions into the model's folder or take them out"
    )
    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _refusing(
        "system shared memory is not supported; send tensors in the request"
    )
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _refusing(
        "CUDA shared memory is not supported; send tensors in the request"
    )
    TraceSetting = _refusing("traces are set by the server's flags --otlp-endpoint and --trace-ratio")
    LogSettings = _refusing("logs are set by the server's flag --log-format")
