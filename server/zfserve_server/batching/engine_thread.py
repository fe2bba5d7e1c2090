"""One engine and the thread it runs in: from a batch that waits to its answers on the event loop. Built by the batcher.

The thread takes whatever waits the moment its engine is free, and hands the answers to the event loop in one call. It
never waits for company, so a lone request pays one hop and nothing else; under load the next batch gathers meanwhile.
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

from zfserve_server.admission.service_rate import ServiceRate, Stopwatch
from zfserve_server.batching.entries import (
    Answer,
    Entry,
    about,
    expired,
    fail,
    failed,
    hung,
    lost,
    not_finite,
    trace_batch,
)
from zfserve_server.batching.fair_queue import FairQueue

logger = logging.getLogger(__name__)


class EngineThread:
    """The methods are called on the event loop, but for those at the end.

    Args:
        row_shape: (height, width, 3) of every image.
        line: of the images to run, shared with other engines.
        pace: told of every batch.
        on_lost: called if the engine is lost or the thread dies, once its batch has been answered.
    """

    def __init__(
        self,
        engine: Engine,
        row_shape: tuple[int, int, int],
        line: FairQueue[Entry],
        pace: ServiceRate,
        metrics: ModelMetrics,
        on_lost: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._most = engine.info.max_batch_size
        self._row_shape = row_shape
        self._line = line
        self._pace = pace
        self._metrics = metrics
        self._on_lost = on_lost
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._batch: Sequence[Entry] = ()
        self._began: float | None = None  # of the run under way
        self._stopwatch = Stopwatch()
        self._abandoned = False
        self._proven = False
        self._is_lost = False
        self._ended = asyncio.Event()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def running_s(self) -> float:
        """For how long the run under way has lasted; 0 where the engine waits for work."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def proven(self) -> bool:
        """Whether the engine has answered anything here."""
        return self._proven

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def abandon(self) -> None:
        """Give up waiting for the run under way. Should it end after all, the engine is closed and the thread ends."""
        self._abandoned = True
        logger.error("the engine hangs", extra={"running_s": round(self.running_s, 1), **about(self._batch)})
        fail(self._batch, hung)

    async def close(self, grace_s: float) -> bool:
        """Wait for the thread to end, as it does once the line is closed, then close the engine.

        False where it does not end within `grace_s`: it is abandoned.
        """
        if self._abandoned:
            return False
        if self._thread.ident is not None:
            try:
                await asyncio.wait_for(self._ended.wait(), grace_s)
            except TimeoutError:
                self.abandon()
                return False
        if not self._is_lost:  # nothing can be asked of an engine that is
            self._engine.close()
        return True

    # In the thread.

    def _serve(self) -> None:
        try:
            rows = np.empty((self._most, *self._row_shape), np.uint8)
            while not self._abandoned and (batch := self._line.take(self._most, self._is_live)):
                self._batch = batch
                self._run(batch, _together(batch, rows))
                self._batch = batch = []  # an idle engine holds nothing
        except BaseException:
            logger.exception("the engine is lost", extra=about(self._batch))
            self._soon(self._lose, self._batch)
        else:
            if self._abandoned:
                self._engine.close()
        self._soon(self._ended.set)

    def _is_live(self, entry: Entry) -> bool:
        if entry.future.done():
            return False
        if entry.deadline.expired():
            self._soon(self._expire, entry)
            return False
        return True

    def _run(self, batch: Sequence[Entry], rows: npt.NDArray[np.uint8]) -> None:
        """Run one batch; one that fails is run again in halves, down to the images that fail by themselves.

        Raises:
            EngineLost: nothing can be run any more.
        """
        began = self._began = time.monotonic()
        try:
            outputs = self._engine.run(rows)
            if not len(outputs.probabilities) == len(outputs.features) == len(batch):
                raise ValueError(f"{len(outputs.probabilities)} rows came back for {len(batch)}")
        except EngineLost:
            raise
        except Exception:
            logger.exception("the engine failed", extra=about(batch))
            self._soon(self._disappoint, batch, began, time.monotonic() - began)
            if (half := len(batch) // 2) and not self._abandoned:
                self._run(batch[:half], rows[:half])
                self._run(batch[half:], rows[half:])
        else:
            inference_s = time.monotonic() - began
            lap_s = self._stopwatch.lap(min(entry.submitted for entry in batch))
            # What is not a number stays that in a sum, which costs less than to look at each.
            finite = np.isfinite(outputs.probabilities.sum(axis=1)).tolist()
            self._soon(self._deliver, batch, outputs, finite, _Times(began, inference_s, lap_s))
        finally:
            self._began = None

    def _soon(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call it on the event loop, unless that ended before a hung engine did."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    # On the event loop again.

    def _deliver(self, batch: Sequence[Entry], outputs: EngineOutputs, finite: Sequence[bool], times: "_Times") -> None:
        for row, entry in enumerate(batch):
            if entry.future.done():
                continue
            if not finite[row]:
                fail((entry,), not_finite)
                logger.error("the network's answer is not finite", extra=about((entry,)))
                continue
            queue_s = times.began - entry.submitted
            probabilities, features = outputs.probabilities[row], outputs.features[row]
            entry.future.set_result(Answer(probabilities, features, queue_s, times.inference_s, len(batch)))
        self._loop.call_soon(self._observe, batch, times)  # the answers go first

    def _observe(self, batch: Sequence[Entry], times: "_Times") -> None:
        self._proven = True
        if not self._abandoned:
            delivery_s = time.monotonic() - times.began - times.inference_s
            self._pace.observe(len(batch), times.lap_s, delivery_s)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_fill.observe(len(batch) / self._most)
        self._metrics.inference_seconds.observe(times.inference_s)
        self._metrics.statistics.add_run(len(batch), times.inference_s)
        trace_batch(batch, times.began, times.inference_s)

    def _disappoint(self, batch: Sequence[Entry], began: float, inference_s: float) -> None:
        if len(batch) == 1:  # the others are run again
            fail(batch, failed)
        self._metrics.engine_failures.inc()
        trace_batch(batch, began, inference_s, failed=True)

    def _expire(self, entry: Entry) -> None:
        fail((entry,), expired)
        self._metrics.queue_expired.inc()

    def _lose(self, batch: Sequence[Entry]) -> None:
        self._is_lost = True
        fail(batch, lost)
        if not self._abandoned:
            self._on_lost()


def _together(batch: Sequence[Entry], rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The pixels of `batch`, in `rows`; those of a lone image where they lie, which spares it 0.03 ms."""
    if len(batch) == 1:
        return batch[0].pixels[None]
    for row, entry in zip(rows, batch, strict=False):
        row[:] = entry.pixels
    return rows[: len(batch)]


class _Times(NamedTuple):
    """Of one run: when it began, how long it took, and how long since the engine could have begun it."""

    began: float
    inference_s: float
    lap_s: float
