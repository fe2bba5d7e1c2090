"""Moves, scales, turns, flips or recolours a photo step by step: the call `Transform` (Zeiler & Fergus, figure 5).

`study_service` calls it.
"""

import asyncio
import io
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image
from zfserve_engines.images.input_image import InputImage
from zfserve_engines.readings.plan import ReadingPlan
from zfserve_protos.v1 import zfserve_pb2 as pb

from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.studies.changes import change
from zfserve_server.studies.layers import FEATURES, ReadLayer
from zfserve_server.studies.running import Chunk, StudyCall, open_runner
from zfserve_server.studies.transformation_request import TransformSettings


async def transform(
    call: StudyCall, settings: TransformSettings, image: InputImage
) -> AsyncGenerator[pb.TransformResponse, None]:
    """Yields a message for each step, in the order of the request.

    Raises:
        ServiceError: see `ImageRunner.run`.
    """
    layers = [layer for layer in (settings.low, settings.high) if layer is not None and layer.name != FEATURES]
    plan = ReadingPlan(tuple(layer.reading("maps") for layer in dict.fromkeys(layers)))
    async with open_runner(call, plan) as runner:
        untouched = await runner.run_one(image.pixels)
        class_index = settings.class_index
        if class_index is None:
            class_index = int(untouched.probabilities.argmax())
        finish = _Finish(call, settings, untouched, plan, class_index)
        size, rank = runner.chunk_size, 0
        parts = [settings.steps[first : first + size] for first in range(0, len(settings.steps), size)]
        async with aclosing(runner.run(partial(_change_all, image, settings, part) for part in parts)) as chunks:
            async for chunk, results in chunks:
                for message in await asyncio.to_thread(finish.messages, chunk, results):
                    message.rank, message.total, message.step = rank, len(settings.steps), settings.steps[rank]
                    message.computation.CopyFrom(runner.computation)
                    if not rank:
                        message.untouched.CopyFrom(call.model.class_score(untouched.probabilities, class_index))
                    yield message
                    rank += 1


def _change_all(image: InputImage, settings: TransformSettings, steps: Sequence[float]) -> Chunk:
    changed = [change(image.pixels, settings.kind, step, settings.border, settings.resampling) for step in steps]
    return Chunk(np.stack(changed))


@dataclass(frozen=True, eq=False)
class _Finish:
    """Makes the messages of a chunk.

    Attributes:
        untouched: the result of the photo without a change.
        class_index: the class whose probability is told.
    """

    call: StudyCall
    settings: TransformSettings
    untouched: InferenceResult
    plan: ReadingPlan
    class_index: int

    def messages(self, chunk: Chunk, results: Sequence[InferenceResult]) -> list[pb.TransformResponse]:
        """Returns a message for each image of the chunk, without what depends on its rank. It takes milliseconds."""
        return [self._message(pixels, result) for pixels, result in zip(chunk.pixels, results, strict=True)]

    def _message(self, pixels: npt.NDArray[np.uint8], result: InferenceResult) -> pb.TransformResponse:
        model, settings = self.call.model, self.settings
        return pb.TransformResponse(
            for_class=model.class_score(result.probabilities, self.class_index),
            best=model.class_score(result.probabilities),
            low=self._distance(settings.low, result),
            high=self._distance(settings.high, result),
            picture_png=_png(pixels) if settings.include_pictures else b"",
            kind=settings.kind,
            border=settings.border,
            resampling=settings.resampling,
            model=model.identity,
        )

    def _distance(self, layer: ReadLayer | None, result: InferenceResult) -> pb.FeatureDistance | None:
        """Returns how far the layer's activations are from those of the untouched photo; None without a layer."""
        if layer is None:
            return None
        before, after = self._read(layer, self.untouched), self._read(layer, result)
        distance, norm = _norm(after - before), _norm(before)
        return pb.FeatureDistance(layer=layer.name, distance=distance, relative=distance / norm if norm else 0.0)

    def _read(self, layer: ReadLayer, result: InferenceResult) -> npt.NDArray[np.float32]:
        if layer.name == FEATURES:
            return result.features
        return result.readings[self.plan.readings.index(layer.reading("maps"))].values


def _norm(values: npt.NDArray[np.float32]) -> float:
    """Returns the Euclidean norm. A layer may have millions of values, so they are added in float64."""
    return float(np.sqrt(np.square(values).sum(dtype=np.float64)))


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
