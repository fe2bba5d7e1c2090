"""From the open port to the first answer: models are loaded one by one, and whoever asks learns how far that is.

    startup = Startup(metrics, health)
    startup.enter(found, step)
    ...
    startup.ready(engine)

Each phase is told by the log, by the metrics `zfserve_startup_phase`, `zfserve_startup_seconds` and
`zfserve_startup_progress`, by the health service (a name for each phase, `zfserve.startup/compiling` and so on, SERVING
while the start is in it), and by the sentence that a call meets meanwhile. Built by `app`.
"""

import logging
import time

from zfserve_engines.catalogue import EngineName, Phase, Step
from zfserve_runtime.errors import Starting
from zfserve_runtime.grpc.health import Health
from zfserve_runtime.model_folders import FoundVersion
from zfserve_runtime.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
_RETRY_AFTER_COMPILING_S = 10.0
"""A compilation takes minutes; whatever else a start does, seconds."""

_LOGGED_SHARE = 0.1
"""Of a compilation, between two lines in the log."""


def phase_service(phase: Phase) -> str:
    """The name by which the health service knows a phase."""
    return f"zfserve.startup/{phase}"


class Startup:
    """Use from the event loop's thread only."""

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._began_s = self._entered_s = time.monotonic()
        self._seconds = dict.fromkeys(Phase, 0.0)
        self._model = ""
        self._step: Step | None = None
        self._logged_share = 0.0
        for phase in Phase:
            metrics.startup_phase.labels(phase).set(0)

    def enter(self, found: FoundVersion, step: Step) -> None:
        """How far the version is that is being loaded."""
        self._enter(f"{found.name} {found.version}", step)

    def ready(self, engine: EngineName) -> None:
        """The last phase begins; `engine` is that of the default model."""
        self._enter("", Step(engine, Phase.READY))

    def refusal(self) -> Starting:
        """What to answer a call meanwhile."""
        so_far_s = time.monotonic() - self._began_s
        what, retry_after_s = "choosing an engine", _RETRY_AFTER_S
        if (step := self._step) is not None:
            share = "" if step.share is None else f" ({step.share:.0%})"
            what = f"{step.phase} the engine {step.engine}{share} for {self._model}"
            if step.phase is Phase.COMPILING:
                retry_after_s = _RETRY_AFTER_COMPILING_S
        return Starting(
            f"the service is starting: {what}, {so_far_s:.0f} s since it began; try again in {retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )

    def _enter(self, model: str, step: Step) -> None:
        before, self._step = self._step, step
        other, self._model = self._model != model, model
        if before is None or other or (before.engine, before.phase) != (step.engine, step.phase):
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
        about = {"model": self._model} if self._model else {}
        extra = {**about, "engine": step.engine, "since_start_s": so_far_s, **fields}
        logger.info("start-up: %s", step.phase, extra=extra)
