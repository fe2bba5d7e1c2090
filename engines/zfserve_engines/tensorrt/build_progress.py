"""Turns the progress of a TensorRT build into one number that never decreases. It can also stop a build.

`builder` calls it.

TensorRT reports nested phases: each phase has a number of steps, and other phases may begin and end during a step.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OnProgress = Callable[[str, int, int], None]
"""Receives the name of a phase, the number of steps that are done, and the number of all steps. The build calls it in
another thread. An exception that it raises stops the build, and the build raises it."""

TOTAL = 1000
"""The number of all steps that `BuildProgress` reports."""


@dataclass
class _Phase:
    """Holds the state of a phase that has begun but not ended."""

    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Implements the methods of TensorRT's `IProgressMonitor`, which several threads may call.

    `make_monitor` derives a class from both. No exception may pass through TensorRT. So an exception that `on_progress`
    raises is stored in `failure`, and the build ends at its next step.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self._on_progress = on_progress
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[str, _Phase] = {}
        self._reported: tuple[str, int] = ("", 0)

    def stop(self) -> None:
        """Ends the build at its next step."""
        self._stopped.set()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Begins a phase. TensorRT calls it."""
        with self._lock:
            parent = parent_phase if parent_phase in self._open else None
            if parent is None:
                self._reported = ("", 0)
            self._open[phase_name] = _Phase(parent, num_steps)
            self._report(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Completes a step of a phase. TensorRT calls it, and stops the build if it returns False."""
        with self._lock:
            if phase := self._open.get(phase_name):
                phase.done = max(phase.done, step + 1)
                self._report(phase_name)
        return not self._stopped.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """Ends a phase. TensorRT calls it."""
        with self._lock:
            if phase := self._open.get(phase_name):
                phase.done = phase.steps
                self._report(phase_name)
                del self._open[phase_name]

    def _report(self, name: str) -> None:
        """Reports the fraction of the outermost phase that is done, and the name of the phase directly below it."""
        path, share = [name], 0.0
        while (parent := self._open[path[-1]].parent) in self._open:
            path.append(parent)
        for phase in map(self._open.__getitem__, path):
            share = min(1.0, (phase.done + share) / phase.steps)
        now = path[-2] if len(path) > 1 else name, max(self._reported[1], int(TOTAL * share))
        if now == self._reported or self._stopped.is_set():
            return
        self._reported = now
        try:
            self._on_progress(*now, TOTAL)
        except BaseException as error:  # even a KeyboardInterrupt must not unwind TensorRT's frames
            self.failure = error
            self._stopped.set()


def make_monitor(module: Any, on_progress: OnProgress) -> Any:
    """Returns a `BuildProgress` that is also an `IProgressMonitor` of the library `module`."""

    class Monitor(BuildProgress, module.IProgressMonitor):  # type: ignore[misc]
        pass

    return Monitor(on_progress)
