"""From the open port to the first answer: the engine opens in a thread, and whoever asks learns how far it is.

    startup = Startup(metrics, health)
    choice = await startup.open(open_engine, stop)
    if choice is not None:
        startup.ready(choice)
        ...
    await startup.conclude(grace_s)

Each phase is told by the log, by the metrics `zfserve_startup_phase`, `zfserve_startup_seconds` and
`zfserve_startup_progress`, by the health service (a name for each phase, `zfserve.startup/compiling` and so on, SERVING
while the start is in it), and by the sentence that a call meets meanwhile. Built by `app`.
"""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable

from zfserve_runtime.engine_catalogue import Phase, Report, Step
from zfserve_runtime.errors import Starting
from zfserve_runtime.health import Health
from zfserve_runtime.lifecycle import StopRequest
from zfserve_runtime.metrics import Metrics

from zfserve_server.engine_choice import EngineChoice

logger = logging.getLogger(__name__)

OpenEngine = Callable[[Report], EngineChoice]

_RETRY_AFTER_S = 1.0
_RETRY_AFTER_COMPILING_S = 10.0
"""A compilation takes minutes; whatever else a start does, seconds."""

_LOGGED_SHARE = 0.1
"""Of a compilation, between two lines in the log."""


class StartCancelled(BaseException):
    """The process shall stop; raised at the next report of whoever opens the engine, which has to let it through."""


class StillOpening(Exception):
    """The process shall stop, and the thread that opens the engine does not hear of it."""


def phase_service(phase: Phase) -> str:
    """The name by which the health service knows a phase."""
    return f"zfserve.startup/{phase}"


class Startup:
    """Use from the event loop's thread only."""

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._cancelled = threading.Event()
        self._opening: asyncio.Future[EngineChoice] | None = None
        self._began_s = self._entered_s = time.monotonic()
        self._seconds = dict.fromkeys(Phase, 0.0)
        self._step: Step | None = None
        self._logged_share = 0.0
        for phase in Phase:
            metrics.startup_phase.labels(phase).set(0)

    async def open(self, open_engine: OpenEngine, stop: StopRequest) -> EngineChoice | None:
        """Wait for the engine. None where it failed to open or `stop` came first: `conclude` says which."""
        self._opening = self._in_thread(open_engine)
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((self._opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.asked:
            self.cancel()
            return None
        return None if self._opening.exception() else self._opening.result()

    def cancel(self) -> None:
        """Let an opening that is under way end at its next report."""
        self._cancelled.set()

    async def conclude(self, grace_s: float) -> None:
        """After `open` gave no engine: leave none behind, and raise what kept it from opening.

        Raises:
            StillOpening: a cancelled opening did not end within `grace_s`; the process must not wait for it.
        """
        assert self._opening is not None, "conclude follows open"
        await asyncio.wait((self._opening,), timeout=grace_s)
        if not self._opening.done():
            self._opening.add_done_callback(asyncio.Future.exception)  # whatever becomes of it is looked at by nobody
            raise StillOpening
        failure = self._opening.exception()
        if failure is None:
            self._opening.result().close()
        elif not isinstance(failure, StartCancelled):
            raise failure

    def _in_thread(self, open_engine: OpenEngine) -> "asyncio.Future[EngineChoice]":
        # A daemon: an opening that hears of nothing must not hold up the process.
        loop = asyncio.get_running_loop()
        outcome: concurrent.futures.Future[EngineChoice] = concurrent.futures.Future()

        def report(step: Step) -> None:
            if self._cancelled.is_set():
                raise StartCancelled
            loop.call_soon_threadsafe(self._enter, step)

        def run() -> None:
            try:
                outcome.set_result(open_engine(report))
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, name="startup", daemon=True).start()
        return asyncio.wrap_future(outcome)

    def ready(self, choice: EngineChoice) -> float:
        """The last phase begins. Returns the seconds it took to come here."""
        self._enter(Step(choice.name, Phase.READY))
        return self._entered_s - self._began_s

    def refusal(self) -> Starting:
        """What to answer a call meanwhile."""
        so_far_s = time.monotonic() - self._began_s
        what, retry_after_s = "choosing an engine", _RETRY_AFTER_S
        if (step := self._step) is not None:
            share = "" if step.share is None else f" ({step.share:.0%})"
            what = f"{step.phase} the engine {step.engine}{share}"
            if step.phase is Phase.COMPILING:
                retry_after_s = _RETRY_AFTER_COMPILING_S
        return Starting(
            f"the service is starting: {what}, {so_far_s:.0f} s since it began; try again in {retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )

    def _enter(self, step: Step) -> None:
        before, self._step = self._step, step
        if before is None or (before.engine, before.phase) != (step.engine, step.phase):
            self._change_phase(before, step)
        if step.share is not None:
            self._metrics.startup_progress.labels(step.phase).set(step.share)
            if step.phase is Phase.COMPILING and step.share >= self._logged_share + _LOGGED_SHARE:
                self._logged_share = step.share
                self._log(step, percent=round(100 * step.share))

    def _change_phase(self, before: Step | None, step: Step) -> None:
        now_s = time.monotonic()
        if before is not None:
            self._seconds[before.phase] += now_s - self._entered_s
            self._metrics.startup_seconds.labels(before.phase).set(self._seconds[before.phase])
            self._metrics.startup_phase.labels(before.phase).set(0)
            self._health.not_serving(phase_service(before.phase))
        self._metrics.startup_progress.clear()
        self._entered_s, self._logged_share = now_s, 0.0
        self._metrics.startup_phase.labels(step.phase).set(1)
        self._health.serving(phase_service(step.phase))
        if step.phase is Phase.READY:
            self._log(step, **{f"{phase}_s": round(spent_s, 3) for phase, spent_s in self._seconds.items() if spent_s})
        else:
            self._log(step)

    def _log(self, step: Step, **fields: float) -> None:
        so_far_s = round(time.monotonic() - self._began_s, 3)
        logger.info("start-up: %s", step.phase, extra={"engine": step.engine, "since_start_s": so_far_s, **fields})
