"""The batcher: requests that wait together share one run of the engine.

One thread per engine takes whatever waits the moment its engine is free, runs it, and hands the answers to the event
loop in one call. It never waits for company, so a lone request pays one thread hop and nothing else; under load the
next batch gathers while the engine runs. Called by `service`; built by `app`.

The thread and the event loop share a deque, whose single operations are atomic, and a bell to wait for. A lock around
both, and a Condition to wait on, would have the loop wait for the thread just when it has an answer to deliver.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from zfserve_runtime.deadline import Deadline
from zfserve_runtime.engine import Engine, EngineOutputs
from zfserve_runtime.errors import DeadlineExceeded, EngineFailed, EngineLost, ServiceError, ShuttingDown
from zfserve_runtime.metrics import ModelMetrics
from zfserve_runtime.request_id import current_request_id
from zfserve_runtime.tracing import TracedRow, current_trace, record_batch

if TYPE_CHECKING:
    from zfserve_runtime.otlp import CallTrace

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What the engine said of one image.

    Attributes:
        probabilities: float32 (K,).
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
class _Entry:
    """One waiting image. `future` belongs to the event loop: only there is it resolved, or cancelled by its caller."""

    pixels: npt.NDArray[np.uint8]
    deadline: Deadline
    submitted: float
    future: asyncio.Future[Answer]
    request_id: str
    trace: "CallTrace | None"


class Batcher:
    """Runs every engine in a thread of its own; they share the queue. The methods are called on the event loop.

    Args:
        engines: one, or several instances of one that a card runs side by side.
        row_shape: (height, width, 3) of every image.
        metrics: batch sizes and the engine's time.
        on_death: called once, on the event loop, if an engine is lost or its thread dies; the batcher then refuses
            everything for good, so health has to say so and the process to end.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        row_shape: tuple[int, int, int],
        metrics: ModelMetrics,
        on_death: Callable[[], None],
    ) -> None:
        self._row_shape = row_shape
        self._most = engines[0].info.max_batch_size
        self._metrics = metrics
        self._on_death = on_death
        self._waiting: deque[_Entry] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # rung for every entry, and for every thread to end
        self._refusal: Callable[[], ServiceError] | None = _closed
        self._loop: asyncio.AbstractEventLoop
        self._threads = [
            threading.Thread(target=self._serve, args=(engine,), name=f"engine-{number}", daemon=True)
            for number, engine in enumerate(engines)
        ]

    def start(self) -> None:
        """Start the engines' threads; answers are delivered to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._refusal = None
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that no engine has taken yet."""
        return len(self._waiting)

    @property
    def lost(self) -> bool:
        """Whether an engine was lost: nothing but a new process helps."""
        return self._refusal is _lost

    async def submit(self, pixels: npt.NDArray[np.uint8], deadline: Deadline) -> Answer:
        """Wait for the engine's answer.

        Args:
            pixels: uint8 (height, width, 3), not written to until the answer is there.
            deadline: an image still waiting then is dropped.

        Raises:
            DeadlineExceeded: the deadline passed before an engine was free.
            EngineFailed: the engine failed on this batch.
            EngineLost: an engine is gone for good.
            ShuttingDown: the batcher is closed.
        """
        assert pixels.shape == self._row_shape, "decoding gives every image the shape of the model's input"
        future = self._loop.create_future()
        entry = _Entry(pixels, deadline, time.monotonic(), future, current_request_id(), current_trace())
        if self._refusal is not None:
            raise self._refusal()
        self._waiting.append(entry)
        self._bell.put(None)
        try:
            return await entry.future
        except asyncio.CancelledError:
            self._withdraw(entry)
            raise

    async def close(self) -> None:
        """Let the batches in the engines finish, refuse what still waits, and end the threads."""
        self._refuse(_closed)
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join)

    def _withdraw(self, entry: _Entry) -> None:
        with suppress(ValueError):  # a batch holds it already
            self._waiting.remove(entry)

    def _refuse(self, refusal: Callable[[], ServiceError]) -> None:
        """From now on refuse every image with `refusal`, and those that wait at once."""
        self._refusal = _lost if self.lost else refusal
        while (entry := self._pop()) is not None:
            _fail((entry,), refusal)
        for _ in self._threads:
            self._bell.put(None)

    def _pop(self) -> _Entry | None:
        """The oldest entry that waits; called by every thread."""
        try:
            return self._waiting.popleft() if self._waiting else None
        except IndexError:  # another thread was quicker
            return None

    # In an engine's thread.

    def _serve(self, engine: Engine) -> None:
        batch: list[_Entry] = []
        try:
            rows = np.empty((engine.info.max_batch_size, *self._row_shape), np.uint8)
            while self._fill(batch, len(rows)):
                self._run(engine, batch, rows[: len(batch)])
                batch = []
        except BaseException:
            logger.exception("the engine is lost", extra=_about(batch))
            self._loop.call_soon_threadsafe(self._die, batch)

    def _fill(self, batch: list[_Entry], most: int) -> bool:
        """Block until there is work; move as many live entries as fit, oldest first. False: the batcher is closed."""
        while True:
            self._silence()
            while len(batch) < most and (entry := self._pop()) is not None:
                if entry.future.done():
                    continue
                if entry.deadline.expired():
                    self._loop.call_soon_threadsafe(self._expire, entry)
                    continue
                batch.append(entry)
            if self._waiting or self._refusal is not None:
                self._bell.put(None)  # for another engine: the ringing that was silenced may have been for it
            if batch or self._refusal is not None:
                return bool(batch)
            self._bell.get()

    def _silence(self) -> None:
        """Forget all ringing so far, before the queue is looked at: it would pile up while no engine is ever idle."""
        # Looks before it takes, as `_pop` does: exceptions, caught or not, would cost a lone request 0.1 ms.
        with suppress(queue.Empty):
            while not self._bell.empty():
                self._bell.get_nowait()

    def _run(self, engine: Engine, batch: Sequence[_Entry], rows: npt.NDArray[np.uint8]) -> None:
        """Run one batch. What goes wrong with it is its own, and the next batch is tried again, except EngineLost."""
        began = time.monotonic()
        for row, entry in zip(rows, batch, strict=True):
            row[:] = entry.pixels
        try:
            outputs = engine.run(rows)
            if not len(outputs.probabilities) == len(outputs.features) == len(batch):
                raise ValueError(f"{len(outputs.probabilities)} rows came back for {len(batch)}")
        except EngineLost:
            raise
        except Exception:
            logger.exception("the engine failed", extra=_about(batch))
            self._loop.call_soon_threadsafe(self._disappoint, batch, began, time.monotonic() - began)
        else:
            inference_s = time.monotonic() - began
            self._loop.call_soon_threadsafe(self._deliver, batch, outputs, began, inference_s)

    # On the event loop again.

    def _deliver(self, batch: Sequence[_Entry], outputs: EngineOutputs, began: float, inference_s: float) -> None:
        for row, entry in enumerate(batch):
            if not entry.future.done():
                queue_s = began - entry.submitted
                answer = Answer(outputs.probabilities[row], outputs.features[row], queue_s, inference_s, len(batch))
                entry.future.set_result(answer)
        self._loop.call_soon(self._observe, batch, began, inference_s)  # the answers go first

    def _observe(self, batch: Sequence[_Entry], began: float, inference_s: float) -> None:
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_fill.observe(len(batch) / self._most)
        self._metrics.inference_seconds.observe(inference_s)
        _trace(batch, began, inference_s)

    def _disappoint(self, batch: Sequence[_Entry], began: float, inference_s: float) -> None:
        _fail(batch, _failed)
        self._metrics.engine_failures.inc()
        _trace(batch, began, inference_s, failed=True)

    def _expire(self, entry: _Entry) -> None:
        _fail((entry,), _expired)
        self._metrics.queue_expired.inc()

    def _die(self, batch: Sequence[_Entry]) -> None:
        _fail(batch, _lost)
        if self._refusal is not _lost:
            self._refuse(_lost)
            self._on_death()


def _about(batch: Sequence[_Entry]) -> dict[str, object]:
    """For the log, as an engine's thread works for many calls and in the context of none."""
    return {"batch_size": len(batch), "request_ids": [entry.request_id for entry in batch]}


def _trace(batch: Sequence[_Entry], began: float, inference_s: float, failed: bool = False) -> None:
    rows = [TracedRow(entry.trace, entry.submitted) for entry in batch if entry.trace is not None]
    if rows:
        record_batch(rows, len(batch), began, inference_s, failed)


def _fail(entries: Iterable[_Entry], error: Callable[[], ServiceError]) -> None:
    """Answer every entry with an error of its own: an exception that several tasks raise collects their tracebacks."""
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error())


def _closed() -> ServiceError:
    return ShuttingDown("the service is starting or shutting down; try another instance, or again shortly")


def _failed() -> ServiceError:
    return EngineFailed("the engine failed on the batch this image was in; try again")


def _lost() -> ServiceError:
    return EngineLost("this server's engine is gone, and the server ends; try another instance, or again shortly")


def _expired() -> ServiceError:
    return DeadlineExceeded("the deadline passed while the image waited for the engine; allow more time")
