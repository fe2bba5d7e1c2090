"""The classification pipeline: the steps of every request that brings an image, in order. Both services call it.

1. `find_model` finds the model that the request names.
2. `identify` tells who calls, and counts the request for the caller's rate limit.
3. `model.admission.admit` accepts or refuses the request. Steps 1 to 3 run without an `await`, so that the version
   cannot be retired between them.
4. `decode` turns the image into the model's input, in a thread.
5. The batcher runs the engine. `classify` does steps 4 and 5 for one image, `classify_each` for several.
6. `_observe` records the times once the response is on its way.

A service converts messages and calls these steps. An RPC that a worker answers calls steps 1, 2 and 4, and has an
admission of its own (`VisionService.Project`). `VisionService.Explain` takes steps 3, 5 and 6 too.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.method_handlers import Context, metadata_of
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.model_statistics import CountedRequest

from zfserve_server.admission.caller_identity import CallerIdentity, identify_caller
from zfserve_server.admission.rate_limit import RateLimit
from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.models.registry import ModelRegistry
from zfserve_server.models.served_model import ServedModel
from zfserve_server.requests.image_decoder import Image, ImageDecoder, Photo


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """Holds what steps 4 to 6 need to know of a request.

    Attributes:
        deadline: an image that has not reached an engine by then is dropped.
        counted: the request in the model's statistics.
    """

    model: ServedModel
    caller: CallerIdentity
    deadline: Deadline
    counted: CountedRequest


class ClassifiedPhoto(NamedTuple):
    """Holds a photo as the model's input, and the engine's result for it."""

    photo: Photo
    result: InferenceResult

    @property
    def seconds(self) -> float:
        """Seconds that decoding, the queue and the engine took together."""
        return self.photo.decode_s + self.result.queue_s + self.result.inference_s


class ClassificationPipeline:
    """Takes requests through the steps that the module lists. Use it on the event loop only."""

    def __init__(self, models: ModelRegistry, rate_limit: RateLimit, decoder: ImageDecoder, metrics: Metrics) -> None:
        self._models = models
        self._rate_limit = rate_limit
        self._decoder = decoder
        self._metrics = metrics

    def find_model(self, name: str, version: str, reference: str = "") -> ServedModel:
        """Returns the model of that name and version; an empty string stands for the default.

        If both are empty and the image is a reference, returns the model that gave the reference out.

        Raises:
            NotFound: the model is not served, or the reference is unknown or has expired.
            Starting: the model is not ready yet.
            ServiceError: no model is ready yet.
        """
        if reference and not name and not version:
            return self._models.find_equivalent(self._decoder.manifest_of(reference))
        return self._models.find(name, version)

    def identify(self, context: Context) -> CallerIdentity:
        """Returns the identity of the caller, and counts one request for its rate limit.

        Raises:
            InvalidInput: the metadata hold an unknown priority or a client id that is too long.
            RateExceeded: the client sends more requests than it may.
        """
        caller = identify_caller(context, metadata_of(context))
        self._rate_limit.take(caller.client)
        return caller

    async def decode(self, image: Image, model: ServedModel) -> Photo:
        """Returns the photo as the model's input.

        Raises:
            InvalidInput: see `ImageDecoder.load`.
            NotFound: the image is a reference that is unknown or has expired.
        """
        return await self._decoder.load(image, model.manifest)

    async def classify(self, request: AdmittedRequest, image: Image) -> ClassifiedPhoto:
        """Returns the photo of a request with its result.

        Raises:
            InvalidInput, NotFound: the image cannot be used; see `decode`.
            ServiceError: the engine has no result for it; see `Batcher.submit`.
        """
        return await self.classify_decoded(request, await self.decode(image, request.model))

    async def classify_decoded(self, request: AdmittedRequest, photo: Photo) -> ClassifiedPhoto:
        """Returns a photo that `decode` made with its result.

        Raises:
            ServiceError: the engine has no result for it; see `Batcher.submit`.
        """
        classified = await self._submit(request, photo)
        self._observe(request, [classified])
        return classified

    async def classify_each(
        self, request: AdmittedRequest, images: Iterable[Image], field: str
    ) -> Sequence[ClassifiedPhoto]:
        """Returns the photos of a request with their results, in the order of `images`.

        Each image goes to the batcher by itself, so that it shares batches with images of other requests. If one of
        them fails, the others are cancelled.

        Args:
            images: one or more.
            field: the field of the request that holds the images. An image that cannot be used is reported by its index
                and this field.

        Raises:
            InvalidInput, NotFound, ServiceError: see `classify`.
        """
        classified = await _gather([self._classify_row(request, row, image, field) for row, image in enumerate(images)])
        self._observe(request, classified)
        return classified

    def keep(self, photo: Photo, model: ServedModel) -> str:
        """Keeps a photo for later requests to that model, and returns its reference."""
        return self._decoder.keep(photo, model.manifest)

    async def _classify_row(self, request: AdmittedRequest, row: int, image: Image, field: str) -> ClassifiedPhoto:
        try:
            photo = await self.decode(image, request.model)
        except InvalidInput as error:
            raise type(error)(f"image {row}: {error.message}", field=field) from error
        return await self._submit(request, photo)

    async def _submit(self, request: AdmittedRequest, photo: Photo) -> ClassifiedPhoto:
        result = await request.model.batcher.submit(photo.image.pixels, request.deadline, request.caller)
        return ClassifiedPhoto(photo, result)

    def _observe(self, request: AdmittedRequest, classified: Sequence[ClassifiedPhoto]) -> None:
        """Counts the request by its slowest image now, and records all images once the response is on its way."""
        slowest = max(classified, key=lambda each: each.seconds)
        request.counted.inferred(slowest.photo.decode_s, slowest.result.queue_s, slowest.result.inference_s)
        asyncio.get_running_loop().call_soon(self._record, request.model, classified)

    def _record(self, model: ServedModel, classified: Sequence[ClassifiedPhoto]) -> None:
        for photo, result in classified:
            self._metrics.decode_seconds.observe(photo.decode_s)
            model.metrics.queue_seconds.observe(result.queue_s)


async def _gather(coroutines: Sequence[Coroutine[None, None, ClassifiedPhoto]]) -> Sequence[ClassifiedPhoto]:
    """Runs one coroutine in this task, and several in tasks of their own. If one fails, it cancels the others."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
