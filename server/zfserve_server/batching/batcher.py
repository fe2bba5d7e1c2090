"""The batcher lets images that wait together share one run of the engine. Built by the loader, called by the pipeline.

Images enter the fair queue on the event loop, and each engine's thread takes batches from it (`engine_thread`). This
module is the event loop's side: it accepts images, and it answers all of them when an engine is lost or the batcher is
closed.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from zfserve_engines.contract import Engine
from zfserve_engines.readings.plan import ReadingEngine, Replacement
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.request_id import current_request_id
from zfserve_runtime.telemetry.metrics import ModelMetrics
from zfserve_runtime.telemetry.tracing import current_trace

from zfserve_server.admission.caller_identity import ANONYMOUS, CallerIdentity, Priority
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.batching import errors
from zfserve_server.batching.engine_thread import EngineThread
from zfserve_server.batching.fair_queue import FairQueue
from zfserve_server.batching.fair_scheduler import BULK_EVERY
from zfserve_server.batching.queue_entry import InferenceResult, QueueEntry, fail
from zfserve_server.batching.watchdog import Watchdog, WatchdogPolicy

CLOSE_GRACE_S = 5.0
"""Seconds that the running batches may still take when the batcher is closed."""

ENGINE_TIMEOUT_S = 30.0

CANCELLATION_SKEW_S = 0.05
"""A client may cancel its call this many seconds before our clock reaches the call's deadline."""


class Batcher:
    """Runs each engine in a thread of its own. All engines share one queue. Call the methods on the event loop.

    Args:
        engines: one engine, or several instances of it that run side by side. They are closed with the batcher.
        row_shape: (height, width, 3) of each image.
        metrics: receives batch sizes and inference times.
        on_engine_lost: called once, on the event loop, if an engine is lost permanently. From then on the batcher
            refuses all images, so health must report it and the process must end.
        policy: says what to do about an engine that hangs. By default it counts as lost.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        row_shape: tuple[int, int, int],
        metrics: ModelMetrics,
        on_engine_lost: Callable[[], None],
        policy: WatchdogPolicy | None = None,
    ) -> None:
        self._row_shape = row_shape
        self._metrics = metrics
        self._on_engine_lost = on_engine_lost
        self._queue: FairQueue[QueueEntry] = FairQueue()
        self._refusal: Callable[[], ServiceError] | None = errors.not_running
        self._loop: asyncio.AbstractEventLoop
        self.service_rate = ServiceRate(len(engines), self._running_s, self._readings_s)
        self._threads = [self._new_thread(engine) for engine in engines]
        policy = policy or WatchdogPolicy(ENGINE_TIMEOUT_S)
        self._watchdog = Watchdog(policy, self._threads, self._new_thread, self._give_up)

    def start(self) -> None:
        """Starts the engine threads. Results are delivered to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._refusal = None
        for thread in self._threads:
            thread.start()
        self._watchdog.start()

    @property
    def queue_depth(self) -> int:
        """The number of images that no engine has taken yet."""
        return len(self._queue)

    @property
    def stalled(self) -> bool:
        """True while no engine works and a new one is being opened."""
        return self._watchdog.stalled_s > 0

    @property
    def engine_lost(self) -> bool:
        """True once an engine was lost. Only a new process can serve again."""
        return self._refusal is errors.engine_lost

    async def submit(
        self,
        pixels: npt.NDArray[np.uint8],
        deadline: Deadline,
        caller: CallerIdentity = ANONYMOUS,
        reading: ReadingEngine | None = None,
        replacement: Replacement | None = None,
    ) -> InferenceResult:
        """Queues one image and waits for its result.

        Args:
            pixels: uint8 (height, width, 3). Do not write to it before this returns.
            deadline: an image that has not reached an engine by then is dropped.
            caller: decides the image's place in the queue. With `reading`, the image is a bulk image.
            reading: runs the image in place of the engine that serves. Use it as `ReadingEngines.use` says.
            replacement: the maps that `reading` replaces for this image, as one row. None replaces none.

        Raises:
            DeadlineExceeded: the deadline passed before an engine was free.
            EngineFailed: the engine failed on this image, or hung on its batch.
            EngineLost: an engine was lost permanently.
            ShuttingDown: the batcher is closed.
        """
        assert pixels.shape == self._row_shape, "decoding gives every image the shape of the model's input"
        future: asyncio.Future[InferenceResult] = self._loop.create_future()
        entry = QueueEntry(pixels, deadline, caller, time.monotonic(), future, current_request_id(), current_trace())
        if reading is not None:
            entry.caller = CallerIdentity(caller.client, Priority.BULK)
            entry.reading, entry.replacement = reading, replacement
        if self._refusal is not None:
            raise self._refusal()
        self._queue.add(entry)
        try:
            return await future
        except asyncio.CancelledError:
            # gRPC cancels a call at its deadline.
            if self._queue.remove(entry) and deadline.expired(CANCELLATION_SKEW_S):
                self._metrics.queue_expired.inc()
            raise

    async def close(self) -> None:
        """Refuses the images that wait, lets the running batches finish, ends the threads and closes the engines.

        An engine that does not end within `CLOSE_GRACE_S` is abandoned and counts as lost.
        """
        self._watchdog.stop()
        self._refuse_all(errors.not_running)
        for thread in self._threads:
            if not await thread.close(CLOSE_GRACE_S):
                self._refusal = errors.engine_lost

    def _new_thread(self, engine: Engine) -> EngineThread:
        return EngineThread(engine, self._row_shape, self._queue, self.service_rate, self._metrics, self._give_up)

    def _running_s(self) -> float:
        return max((thread.serving_s for thread in self._threads), default=self._watchdog.stalled_s)

    def _readings_s(self, ahead: float) -> float:
        """Returns the seconds for which studies occupy the engines before an image that has `ahead` images ahead."""
        rest_s = min((thread.reading_rest_s for thread in self._threads), default=0.0)
        turns = min(self._queue.readings, ahead // (BULK_EVERY - 1))
        row_s = max((thread.reading_row_s for thread in self._threads), default=0.0)
        return rest_s + turns * row_s / max(1, len(self._threads))

    def _refuse_all(self, refusal: Callable[[], ServiceError]) -> None:
        """Refuses the images that wait and all later ones."""
        self._refusal = errors.engine_lost if self.engine_lost else refusal
        fail(self._queue.close(len(self._threads)), refusal)

    def _give_up(self) -> None:
        if not self.engine_lost:
            self._refuse_all(errors.engine_lost)
            self._watchdog.stop()
            self._on_engine_lost()
