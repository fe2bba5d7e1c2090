"""The batcher: requests that wait together share one run of the engine. Called by the services; built by `app`.

Images enter the waiting line on the event loop; each engine's thread takes from it. This is the loop's side: who may
enter, and what becomes of everyone when an engine is lost or the batcher is closed.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from zfserve_engines.contract import Engine
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.request_id import current_request_id
from zfserve_runtime.telemetry.metrics import ModelMetrics
from zfserve_runtime.telemetry.tracing import current_trace

from zfserve_server.admission.senders import NOBODY, Sender
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.batching.engine_thread import EngineThread
from zfserve_server.batching.entries import Answer, Entry, closed, fail, lost
from zfserve_server.batching.fair_queue import FairQueue
from zfserve_server.batching.watchdog import Watchdog, WatchdogPolicy

CLOSING_S = 5.0
"""For the batches in the engines, once nobody may wait for them any more."""

ENGINE_TIMEOUT_S = 30.0

EARLY_S = 0.05
"""By which a client's cancellation at its deadline may be ahead of our clock."""


class Batcher:
    """Runs every engine in a thread of its own; they share the line. The methods are called on the event loop.

    Args:
        engines: one, or several instances of one that a card runs side by side. They are closed with the batcher.
        row_shape: (height, width, 3) of every image.
        metrics: batch sizes and the engine's time.
        on_death: called once, on the event loop, if an engine is lost for good; the batcher then refuses everything,
            so health has to say so and the process to end.
        care: for engines that hang; by default they are given up for lost.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        row_shape: tuple[int, int, int],
        metrics: ModelMetrics,
        on_death: Callable[[], None],
        care: WatchdogPolicy | None = None,
    ) -> None:
        self._row_shape = row_shape
        self._metrics = metrics
        self._on_death = on_death
        self._line: FairQueue[Entry] = FairQueue()
        self._refusal: Callable[[], ServiceError] | None = closed
        self._loop: asyncio.AbstractEventLoop
        self.pace = ServiceRate(len(engines), self._running_s)
        self._threads = [self._new_thread(engine) for engine in engines]
        self._watchdog = Watchdog(care or WatchdogPolicy(ENGINE_TIMEOUT_S), self._threads, self._new_thread, self._die)

    def start(self) -> None:
        """Start the engines' threads; answers are delivered to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._refusal = None
        for thread in self._threads:
            thread.start()
        self._watchdog.start()

    @property
    def waiting(self) -> int:
        """Images that no engine has taken yet."""
        return len(self._line)

    @property
    def stalled(self) -> bool:
        """Whether no engine is left that works, and a fresh one is awaited."""
        return self._watchdog.stalled_s > 0

    @property
    def lost(self) -> bool:
        """Whether an engine was lost: nothing but a new process helps."""
        return self._refusal is lost

    async def submit(self, pixels: npt.NDArray[np.uint8], deadline: Deadline, sender: Sender = NOBODY) -> Answer:
        """Wait for the engine's answer.

        Args:
            pixels: uint8 (height, width, 3), not written to until the answer is there.
            deadline: an image still waiting then is dropped.

        Raises:
            DeadlineExceeded: the deadline passed before an engine was free.
            EngineFailed: the engine failed on this image, or hung on the batch it was in.
            EngineLost: an engine is gone for good.
            ShuttingDown: the batcher is closed.
        """
        assert pixels.shape == self._row_shape, "decoding gives every image the shape of the model's input"
        future: asyncio.Future[Answer] = self._loop.create_future()
        entry = Entry(pixels, deadline, sender, time.monotonic(), future, current_request_id(), current_trace())
        if self._refusal is not None:
            raise self._refusal()
        self._line.add(entry)
        try:
            return await future
        except asyncio.CancelledError:
            # gRPC cancels a call at its deadline.
            if self._line.withdraw(entry) and deadline.expired(EARLY_S):
                self._metrics.queue_expired.inc()
            raise

    async def close(self) -> None:
        """Let the batches in the engines finish, refuse what still waits, end the threads and close the engines.

        An engine that does not end in time is left behind, and counts as lost.
        """
        self._watchdog.stop()
        self._refuse(closed)
        for thread in self._threads:
            if not await thread.close(CLOSING_S):
                self._refusal = lost

    def _new_thread(self, engine: Engine) -> EngineThread:
        return EngineThread(engine, self._row_shape, self._line, self.pace, self._metrics, self._die)

    def _running_s(self) -> float:
        return max((thread.running_s for thread in self._threads), default=self._watchdog.stalled_s)

    def _refuse(self, refusal: Callable[[], ServiceError]) -> None:
        """From now on refuse every image with `refusal`, and those that wait at once."""
        self._refusal = lost if self.lost else refusal
        fail(self._line.close(len(self._threads)), refusal)

    def _die(self) -> None:
        if not self.lost:
            self._refuse(lost)
            self._watchdog.stop()
            self._on_death()
