"""An image on its way to an engine and back, and the errors that it may meet there. Made by the batcher."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from zfserve_runtime.errors import DeadlineExceeded, EngineFailed, EngineHung, EngineLost, ServiceError, ShuttingDown
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.telemetry.tracing import CallTrace, TracedRow, record_batch

from zfserve_server.admission.senders import Sender


class Answer(NamedTuple):
    """What the engine said of one image.

    Attributes:
        probabilities: float32 (K,), finite.
        features: float32 (F,), the last hidden layer.
        queue_s: from `submit` until the batch began.
        inference_s: of the whole batch.
    """

    probabilities: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    queue_s: float
    inference_s: float
    batch_size: int


@dataclass(eq=False, slots=True)
class Entry:
    """One waiting image. `future` belongs to the event loop: only there is it resolved, or cancelled by its caller."""

    pixels: npt.NDArray[np.uint8]
    deadline: Deadline
    sender: Sender
    submitted: float
    future: asyncio.Future[Answer]
    request_id: str
    trace: CallTrace


def fail(entries: Iterable[Entry], error: Callable[[], ServiceError]) -> None:
    """Answer every entry with an error of its own: an exception that several tasks raise collects their tracebacks."""
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error())


def about(batch: Sequence[Entry]) -> dict[str, object]:
    """For the log, as an engine's thread works for many calls and in the context of none."""
    return {"batch_size": len(batch), "request_ids": [entry.request_id for entry in batch]}


def trace_batch(batch: Sequence[Entry], began: float, inference_s: float, failed: bool = False) -> None:
    rows = [TracedRow(entry.trace, entry.submitted) for entry in batch if entry.trace.span.is_recording()]
    if rows:
        record_batch(rows, len(batch), began, inference_s, failed)


def closed() -> ServiceError:
    return ShuttingDown("the service is starting or shutting down; try another instance, or again shortly")


def failed() -> ServiceError:
    return EngineFailed("the engine failed on this image; try again, or another image")


def not_finite() -> ServiceError:
    return EngineFailed("the network gave no numbers for this image; try again, or another image")


def hung() -> ServiceError:
    return EngineHung("the engine did not answer in time and is being replaced; try again, or another image")


def lost() -> ServiceError:
    return EngineLost("this server's engine is gone, and the server ends; try another instance, or again shortly")


def expired() -> ServiceError:
    return DeadlineExceeded("the deadline passed while the image waited for the engine; allow more time")
