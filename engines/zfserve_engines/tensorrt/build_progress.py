"""How far a TensorRT build is, as one number that only grows, and the way to stop it. Called by `tensorrt_builder`.

TensorRT reports phases within phases: each has a number of steps, and during a step other phases may begin and end.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OnProgress = Callable[[str, int, int], None]
"""Told the name of a phase, how much of the whole is done, and how much there is in all. Called from another thread.
What it raises stops the build and is raised there."""

WHOLE = 1000


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """The methods of TensorRT's `IProgressMonitor`, which may be called from several threads.

    `bind_monitor` derives a class of both. Nothing may be raised into TensorRT, so what `on_progress` raises is kept
    in `failure` and the build is told to end.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self._on_progress = on_progress
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[str, _Phase] = {}
        self._told: tuple[str, int] = ("", 0)

    def stop(self) -> None:
        """Let the build end at its next step."""
        self._stopped.set()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with self._lock:
            parent = parent_phase if parent_phase in self._open else None
            if parent is None:
                self._told = ("", 0)
            self._open[phase_name] = _Phase(parent, num_steps)
            self._tell(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        with self._lock:
            if phase := self._open.get(phase_name):
                phase.done = max(phase.done, step + 1)
                self._tell(phase_name)
        return not self._stopped.is_set()

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            if phase := self._open.get(phase_name):
                phase.done = phase.steps
                self._tell(phase_name)
                del self._open[phase_name]

    def _tell(self, name: str) -> None:
        """Report the share of the outermost phase, and the name of the phase just below it."""
        path, share = [name], 0.0
        while (parent := self._open[path[-1]].parent) in self._open:
            path.append(parent)
        for phase in map(self._open.__getitem__, path):
            share = min(1.0, (phase.done + share) / phase.steps)
        now = path[-2] if len(path) > 1 else name, max(self._told[1], int(WHOLE * share))
        if now == self._told or self._stopped.is_set():
            return
        self._told = now
        try:
            self._on_progress(*now, WHOLE)
        except BaseException as error:  # not even a KeyboardInterrupt may unwind TensorRT's frames
            self.failure = error
            self._stopped.set()


def bind_monitor(module: Any, on_progress: OnProgress) -> Any:
    """A `BuildProgress` that is an `IProgressMonitor` of the library `module`."""

    class Monitor(BuildProgress, module.IProgressMonitor):  # type: ignore[misc]
        pass

    return Monitor(on_progress)
