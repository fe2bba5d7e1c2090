"""A queue entry is one image that waits for an engine, and the future of its result. Made by the batcher."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from zfserve_engines.readings.plan import ReadingEngine, ReadValues, Replacement
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.tracing import CallTrace, TracedRow, record_batch

from zfserve_server.admission.caller_identity import CallerIdentity


class InferenceResult(NamedTuple):
    """Holds the engine's output for one image.

    Attributes:
        probabilities: float32 (K,), finite.
        features: float32 (F,), the last hidden layer.
        queue_s: seconds from `submit` until the batch began.
        inference_s: seconds that the whole batch took.
        batch_size: images in that batch.
        readings: the values of each reading for this image, if a reading engine ran it.
    """

    probabilities: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    queue_s: float
    inference_s: float
    batch_size: int
    readings: tuple[ReadValues, ...] = ()


@dataclass(eq=False, slots=True)
class QueueEntry:
    """Holds one image in the queue.

    Attributes:
        pixels: uint8 (height, width, 3).
        submitted: time.monotonic() at `submit`.
        future: receives the result. It is resolved or cancelled on the event loop only.
        reading: the engine that must run the image. None: the engine that serves.
        replacement: one row, the maps to replace for this image. None: none.
    """

    pixels: npt.NDArray[np.uint8]
    deadline: Deadline
    caller: CallerIdentity
    submitted: float
    future: asyncio.Future[InferenceResult]
    request_id: str
    trace: CallTrace
    reading: ReadingEngine | None = None
    replacement: Replacement | None = None


def fail(entries: Iterable[QueueEntry], make_error: Callable[[], ServiceError]) -> None:
    """Resolves each entry that is still pending with an error of its own."""
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(make_error())


def log_fields(batch: Sequence[QueueEntry]) -> dict[str, object]:
    """Returns the fields that name a batch in the log. An engine's thread has no request context of its own."""
    return {"batch_size": len(batch), "request_ids": [entry.request_id for entry in batch]}


def trace_batch(batch: Sequence[QueueEntry], began: float, inference_s: float, failed: bool = False) -> None:
    """Records the batch in the trace of each call that is traced."""
    rows = [TracedRow(entry.trace, entry.submitted) for entry in batch if entry.trace.span.is_recording()]
    if rows:
        record_batch(rows, len(batch), began, inference_s, failed)
