"""Runs the images of a study through the batcher. Each study opens a runner; `study_service` makes the call.

A study's images are bulk, whatever the priority of its caller. At most two batches of them are in memory: one runs
while the next is made in a thread and waits. If the call ends, the images that wait leave the queue.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from zfserve_engines.readings.plan import ReadingEngine, ReadingPlan, Replacement
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.tracing import leave_trace, span

from zfserve_server.admission.caller_identity import CallerIdentity
from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.models.served_model import ServedModel

CHUNKS_IN_FLIGHT = 2
"""One chunk runs while the next one is made and waits, so that the engine never waits."""


@dataclass(frozen=True)
class StudyCall:
    """Holds what a study needs to know of its call.

    Attributes:
        study: the name of the study in metrics and traces.
        caller: the caller, with the priority of bulk work.
        deadline: an image that has not reached an engine by then is dropped.
    """

    study: str
    model: ServedModel
    caller: CallerIdentity
    deadline: Deadline


class Chunk(NamedTuple):
    """Holds images that are run together.

    Attributes:
        pixels: uint8 (N, H, W, 3).
        replacement: replaces maps while the images run; None leaves them.
    """

    pixels: npt.NDArray[np.uint8]
    replacement: Replacement | None = None


MakeChunk = Callable[[], Chunk]
"""Makes a chunk. It runs in a thread."""


class ImageRunner:
    """Runs the images of one study.

    Args:
        engine: reads layers. None runs the images on the engines that serve.

    Attributes:
        chunk_size: the largest number of images that a chunk should have: those of one run.
        computation: the precision and the engine, for the answer.
    """

    def __init__(self, call: StudyCall, engine: ReadingEngine | None) -> None:
        self._call = call
        self._engine = engine
        self._images = call.model.metrics.study_images(call.study)
        choice = call.model.choice
        info = (engine or choice.instances[0]).info
        self.chunk_size = info.max_batch_size
        self.computation = pb.Computation(precision=info.precision, engine=engine.name if engine else choice.name)

    async def run_one(self, pixels: npt.NDArray[np.uint8]) -> InferenceResult:
        """Returns the result of one image, uint8 (H, W, 3), without any replacement.

        Raises:
            ServiceError: the engine has no result for it; see `Batcher.submit`.
        """
        (result,) = await self._run_chunk(Chunk(pixels[None]))
        return result

    async def run(self, chunks: Iterable[MakeChunk]) -> AsyncGenerator[tuple[Chunk, Sequence[InferenceResult]], None]:
        """Yields each chunk with the results of its images, in order. Chunks are made only when they are needed.

        Close the generator to stop: images that wait for the engine are dropped.

        Raises:
            ServiceError: the engine has no result for an image; see `Batcher.submit`.
        """
        in_flight: deque[asyncio.Task[tuple[Chunk, Sequence[InferenceResult]]]] = deque()
        try:
            for make in chunks:
                in_flight.append(asyncio.create_task(self._make_and_run(make)))
                if len(in_flight) == CHUNKS_IN_FLIGHT:
                    yield await in_flight.popleft()
            while in_flight:
                yield await in_flight.popleft()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def _make_and_run(self, make: MakeChunk) -> tuple[Chunk, Sequence[InferenceResult]]:
        chunk = await asyncio.to_thread(make)
        return chunk, await self._run_chunk(chunk)

    async def _run_chunk(self, chunk: Chunk) -> Sequence[InferenceResult]:
        with span("study batch", {"zfserve.study": self._call.study, "zfserve.images": len(chunk.pixels)}):
            submitted = [asyncio.create_task(self._submit(chunk, row)) for row in range(len(chunk.pixels))]
            try:
                return await asyncio.gather(*submitted)
            finally:
                for task in submitted:
                    task.cancel()

    async def _submit(self, chunk: Chunk, row: int) -> InferenceResult:
        leave_trace()  # a study has thousands of images, so only its batches have spans
        call, replacement = self._call, chunk.replacement
        if replacement is not None:
            replacement = Replacement(replacement.keep[row : row + 1], replacement.values[row : row + 1])
        result = await call.model.batcher.submit(
            chunk.pixels[row], call.deadline, call.caller, self._engine, replacement
        )
        self._images.inc()
        return result


@asynccontextmanager
async def open_runner(call: StudyCall, plan: ReadingPlan) -> AsyncIterator[ImageRunner]:
    """Yields a runner whose results hold the readings of `plan`. It opens an engine for the plan if none is open.

    Raises:
        ServiceError: no engine can read these layers.
    """
    if plan == ReadingPlan():
        yield ImageRunner(call, None)
        return
    async with call.model.readings.use(plan) as engine:
        yield ImageRunner(call, engine)
