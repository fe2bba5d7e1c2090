"""An engine thread runs one engine: it takes batches from the queue and delivers results. Built by the batcher.

As soon as its engine is free, the thread takes all waiting images, up to one batch. It hands the results to the event
loop in one call. It never waits for a batch to fill. A lone request therefore pays one thread hop and nothing else;
under load the next batch gathers while the engine runs. `zfserve_engines.catalogue` lists the engines.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from zfserve_engines.contract import Engine, EngineOutputs
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.telemetry.metrics import ModelMetrics

from zfserve_server.admission.service_rate import OVERDUE_FACTOR, ServiceRate, Stopwatch
from zfserve_server.batching import errors
from zfserve_server.batching.batch_run import finite_rows, readings_of, run_batch, stack_pixels
from zfserve_server.batching.bulk_pace import BulkPace
from zfserve_server.batching.fair_queue import BatchLimits, FairQueue
from zfserve_server.batching.queue_entry import InferenceResult, QueueEntry, fail, log_fields, trace_batch

logger = logging.getLogger(__name__)


class EngineThread:
    """Runs one engine in a thread. Call the public methods on the event loop.

    Args:
        engine: the engine to run. It is closed with the thread.
        row_shape: (height, width, 3) of each image.
        queue: the images to run. Other engines may share it.
        service_rate: observes each batch.
        metrics: receives batch sizes and inference times.
        on_engine_lost: called on the event loop if the engine is lost or the thread dies, after its batch was answered.
    """

    def __init__(
        self,
        engine: Engine,
        row_shape: tuple[int, int, int],
        queue: FairQueue[QueueEntry],
        service_rate: ServiceRate,
        metrics: ModelMetrics,
        on_engine_lost: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._max_batch_size = engine.info.max_batch_size
        self._row_shape = row_shape
        self._queue = queue
        self._service_rate = service_rate
        self._metrics = metrics
        self._on_engine_lost = on_engine_lost
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run_batches, name="engine", daemon=True)
        self._batch: Sequence[QueueEntry] = ()
        self._run_began: float | None = None  # None while the engine waits for work
        self._stopwatch = Stopwatch()
        self._pace = BulkPace()
        self._expected_s = 0.0  # how long the current run of a reading engine will take
        self.reading_hung = False
        """True once the thread was abandoned while a reading engine ran."""
        self.reading_row_s = 0.0
        """Seconds for one image in the last batch of a reading engine; 0 until there was one."""
        self._abandoned = False
        self._has_finished_a_run = False
        self._engine_lost = False
        self._ended = asyncio.Event()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def running_s(self) -> float:
        """Seconds since the current run began; 0 while the engine waits for work."""
        began = self._run_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def serving_s(self) -> float:
        """Seconds since the current run of the engine that serves began; 0 where another engine or none runs."""
        return 0.0 if self._reads else self.running_s

    @property
    def reading_rest_s(self) -> float:
        """Seconds until the current run of a reading engine ends, as expected; 0 where no such run is under way."""
        running_s = self.running_s
        if not self._reads or not running_s:
            return 0.0
        # As for the engine that serves, an overdue run is expected to last as long again.
        return running_s if running_s > OVERDUE_FACTOR * self._expected_s else max(0.0, self._expected_s - running_s)

    @property
    def _reads(self) -> bool:
        batch = self._batch
        return bool(batch) and batch[0].reading is not None

    @property
    def has_finished_a_run(self) -> bool:
        """True once the engine has answered a batch."""
        return self._has_finished_a_run

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def abandon(self) -> None:
        """Fails the current batch and stops waiting for its run. If the run ends later, the engine is closed then."""
        self._abandoned = True
        batch = self._batch
        logger.error("the engine hangs", extra={"running_s": round(self.running_s, 1), **log_fields(batch)})
        if batch and batch[0].reading is not None:
            batch[0].reading.close()  # no image and no study takes it any more
            self.reading_hung = True
        fail(batch, errors.engine_hung)

    async def close(self, grace_s: float) -> bool:
        """Waits for the thread to end, then closes the engine. The queue must be closed already.

        Returns False if the thread does not end within `grace_s` seconds. It is abandoned then.
        """
        if self._abandoned:
            return False
        if self._thread.ident is not None:
            try:
                await asyncio.wait_for(self._ended.wait(), grace_s)
            except TimeoutError:
                self.abandon()
                return False
        if not self._engine_lost:  # a lost engine cannot be closed
            self._engine.close()
        return True

    # The methods below run in the thread.

    def _run_batches(self) -> None:
        try:
            rows = np.empty((self._max_batch_size, *self._row_shape), np.uint8)
            while not self._abandoned and (batch := self._queue.take_batch(self._limits, self._is_live)):
                self._batch = batch
                self._run(batch, stack_pixels(batch, rows))
                self._batch = batch = []  # an idle engine keeps no images alive
        except BaseException:
            logger.exception("the engine is lost", extra=log_fields(self._batch))
            self._call_on_loop(self._handle_engine_lost, self._batch)
        else:
            if self._abandoned:
                self._engine.close()
        self._call_on_loop(self._ended.set)

    def _limits(self, first: QueueEntry) -> BatchLimits:
        """Returns the limits of the batch that `first` begins."""
        reading, largest = first.reading, self._max_batch_size
        entries = largest if reading is None else min(largest, reading.info.max_batch_size)
        return BatchLimits(entries, self._pace.rows(reading))

    def _is_live(self, entry: QueueEntry) -> bool:
        if entry.future.done():
            return False
        if entry.deadline.expired():
            self._call_on_loop(self._expire, entry)
            return False
        if entry.reading is not None and entry.reading.closed:
            self._call_on_loop(fail, (entry,), errors.engine_hung)
            return False
        return True

    def _run(self, batch: Sequence[QueueEntry], rows: npt.NDArray[np.uint8]) -> None:
        """Runs one batch. If it fails, runs its halves, down to the single images that fail alone.

        Raises:
            EngineLost: the engine cannot run anything any more.
        """
        reading = batch[0].reading
        if reading is not None:
            self._expected_s = len(batch) * (self._pace.row_s(reading) or 0.0)
        began = self._run_began = time.monotonic()
        try:
            outputs = run_batch(self._engine, batch, rows)
            finite = finite_rows(outputs)
        except EngineLost:
            raise
        except Exception:
            logger.exception("the engine failed", extra=log_fields(batch))
            self._call_on_loop(self._fail_batch, batch, began, time.monotonic() - began)
            if (half := len(batch) // 2) and not self._abandoned:
                self._run(batch[:half], rows[:half])
                self._run(batch[half:], rows[half:])
        else:
            inference_s = time.monotonic() - began
            self._pace.observe(reading, len(batch), inference_s)
            lap_s = self._stopwatch.lap(min(entry.submitted for entry in batch))
            self._call_on_loop(self._deliver, batch, outputs, finite, _Times(began, inference_s, lap_s))
        finally:
            self._run_began = None

    def _call_on_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        # The event loop may have closed before a hung engine returns.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    # The methods below run on the event loop.

    def _deliver(
        self, batch: Sequence[QueueEntry], outputs: EngineOutputs, finite: Sequence[bool], times: "_Times"
    ) -> None:
        for row, entry in enumerate(batch):
            if entry.future.done():
                continue
            if not finite[row]:
                fail((entry,), errors.not_finite)
                logger.error("the network's output is not finite", extra=log_fields((entry,)))
                continue
            queue_s = times.began - entry.submitted
            probabilities, features = outputs.probabilities[row], outputs.features[row]
            readings = tuple(values.of_photo(row) for values in readings_of(outputs))
            entry.future.set_result(
                InferenceResult(probabilities, features, queue_s, times.inference_s, len(batch), readings)
            )
        self._loop.call_soon(self._observe, batch, times)  # after the results, which callers wait for

    def _observe(self, batch: Sequence[QueueEntry], times: "_Times") -> None:
        self._has_finished_a_run = True
        trace_batch(batch, times.began, times.inference_s)
        if batch[0].reading is not None:
            # Neither the estimates of admission nor the figures of the model are about studies.
            self.reading_row_s = times.inference_s / len(batch)
            return
        if not self._abandoned:
            delivery_s = time.monotonic() - times.began - times.inference_s
            self._service_rate.observe(len(batch), times.lap_s, delivery_s)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_fill.observe(len(batch) / self._max_batch_size)
        self._metrics.inference_seconds.observe(times.inference_s)
        self._metrics.statistics.add_run(len(batch), times.inference_s)

    def _fail_batch(self, batch: Sequence[QueueEntry], began: float, inference_s: float) -> None:
        if len(batch) == 1:  # the images of a larger batch are run again
            fail(batch, errors.engine_failed)
        self._metrics.engine_failures.inc()
        trace_batch(batch, began, inference_s, failed=True)

    def _expire(self, entry: QueueEntry) -> None:
        fail((entry,), errors.deadline_expired)
        self._metrics.queue_expired.inc()

    def _handle_engine_lost(self, batch: Sequence[QueueEntry]) -> None:
        self._engine_lost = True
        fail(batch, errors.engine_lost)
        if not self._abandoned:
            self._on_engine_lost()


class _Times(NamedTuple):
    """Holds the times of one run.

    Attributes:
        began: time.monotonic() when the run began.
        inference_s: seconds that the run took.
        lap_s: seconds since the engine could have begun it (see `Stopwatch.lap`).
    """

    began: float
    inference_s: float
    lap_s: float
