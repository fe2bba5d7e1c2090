"""Reports how far the start is, from the open port to the first answer, while the models are loaded. Built by `app`.

    progress = StartupProgress(metrics, health)
    progress.enter(found, step)
    ...
    progress.ready(engine)

Each phase is reported in four places: the log; the metrics `zfserve_startup_phase`, `zfserve_startup_seconds` and
`zfserve_startup_progress`; the health service, where each phase has a name (`zfserve.startup/compiling` and so on) that
is SERVING during the phase; and the error that calls get meanwhile.
"""

import logging
import time

from zfserve_engines.contract import EngineName
from zfserve_engines.opening import Phase, Step
from zfserve_runtime.errors import Starting
from zfserve_runtime.grpc.health import Health
from zfserve_runtime.model_repository import FoundVersion
from zfserve_runtime.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
_RETRY_AFTER_COMPILING_S = 10.0
"""A compilation takes minutes; every other phase takes seconds."""

_LOGGED_SHARE = 0.1
"""A compilation logs a line each time it has advanced by this share, in [0, 1]."""


def phase_service(phase: Phase) -> str:
    """Returns the name of a phase in the health service."""
    return f"zfserve.startup/{phase}"


def describe_step(step: Step) -> str:
    """Returns a step as words, such as "compiling the engine tensorrt (42%)"."""
    share = "" if step.share is None else f" ({step.share:.0%})"
    return f"{step.phase} the engine {step.engine}{share}"


class StartupProgress:
    """Tracks the phase of the start. Use from the event loop's thread only."""

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._began_s = self._phase_began_s = time.monotonic()
        self._phase_seconds = dict.fromkeys(Phase, 0.0)
        self._model = ""
        self._step: Step | None = None
        self._logged_share = 0.0
        for phase in Phase:
            metrics.startup_phase.labels(phase).set(0)

    def enter(self, found: FoundVersion, step: Step) -> None:
        """Reports the step that the load of `found` has reached."""
        self._enter(f"{found.name} {found.version}", step)

    def ready(self, engine: EngineName) -> None:
        """Reports the last phase. `engine` is that of the default model."""
        self._enter("", Step(engine, Phase.READY))

    def refusal(self) -> Starting:
        """Returns the error for a call that comes before the start is over."""
        elapsed_s = time.monotonic() - self._began_s
        activity, retry_after_s = "choosing an engine", _RETRY_AFTER_S
        if self._step is not None:
            activity = f"{describe_step(self._step)} for {self._model}"
            if self._step.phase is Phase.COMPILING:
                retry_after_s = _RETRY_AFTER_COMPILING_S
        return Starting(
            f"the service is starting: {activity}, {elapsed_s:.0f} s since it began; "
            f"try again in {retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )

    def _enter(self, model: str, step: Step) -> None:
        before, self._step = self._step, step
        model_changed, self._model = self._model != model, model
        if before is None or model_changed or (before.engine, before.phase) != (step.engine, step.phase):
            self._change_phase(before, step)
        if step.share is not None:
            self._metrics.startup_progress.labels(step.phase).set(step.share)
            if step.phase is Phase.COMPILING and step.share >= self._logged_share + _LOGGED_SHARE:
                self._logged_share = step.share
                self._log(step, percent=round(100 * step.share))

    def _change_phase(self, before: Step | None, step: Step) -> None:
        now_s = time.monotonic()
        if before is not None:
            self._phase_seconds[before.phase] += now_s - self._phase_began_s
            self._metrics.startup_seconds.labels(before.phase).set(self._phase_seconds[before.phase])
            self._metrics.startup_phase.labels(before.phase).set(0)
            self._health.not_serving(phase_service(before.phase))
        self._metrics.startup_progress.clear()
        self._phase_began_s, self._logged_share = now_s, 0.0
        self._metrics.startup_phase.labels(step.phase).set(1)
        self._health.serving(phase_service(step.phase))
        if step.phase is Phase.READY:
            spent = {f"{phase}_s": round(seconds, 3) for phase, seconds in self._phase_seconds.items() if seconds}
            self._log(step, **spent)
        else:
            self._log(step)

    def _log(self, step: Step, **fields: float) -> None:
        elapsed_s = round(time.monotonic() - self._began_s, 3)
        model = {"model": self._model} if self._model else {}
        logger.info(
            "start-up: %s", step.phase, extra={**model, "engine": step.engine, "since_start_s": elapsed_s, **fields}
        )
