"""This module reports the progress of a run: a live bar on a terminal, plain lines elsewhere.

`zfserve train` calls it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from zfserve_model.training.periodic_timer import PeriodicTimer
from zfserve_model.training.recipe import Schedule, Step
from zfserve_model.training.state import EpochResult

LINE_EVERY_S = 30.0
SMOOTHING = 0.95
"""The weight of earlier values in the running means of loss and speed."""


class Reporter(Protocol):
    def step(self, step: Step, loss: float) -> None:
        """Reports a finished step."""

    def epoch(self, result: EpochResult) -> None:
        """Reports a finished and measured epoch."""


@contextmanager
def report_run(console: Console, schedule: Schedule, batch_size: int, first_step: int) -> Iterator[Reporter]:
    """Yields the reporter that suits `console`, for a run that begins or resumes at `first_step`."""
    estimate = RunEstimate(schedule, batch_size, first_step)
    if not console.is_terminal:
        yield ProgressLines(console, estimate)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    # The time of a step depends on the size of its photos. So the estimate counts work (`Schedule.total_work`).
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console) as progress:
        task = progress.add_task("", total=schedule.total_work, completed=schedule.work_before(first_step))
        yield ProgressBar(progress, task, estimate)


@contextmanager
def report_count(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Announces `total` photos. Yields a function that takes the number of photos done since its last call."""
    if not console.is_terminal:
        console.print(f"{what}: {total} photos", soft_wrap=True, highlight=False)
        yield lambda count: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


class ProgressBar:
    """Redraws one line after every step. Finished epochs scroll by above it."""

    def __init__(self, progress: Progress, task: TaskID, estimate: "RunEstimate") -> None:
        self._progress, self._task, self._estimate = progress, task, estimate

    def step(self, step: Step, loss: float) -> None:
        self._estimate.advance(step, loss)
        self._progress.update(self._task, completed=self._estimate.work_done, description=self._estimate.describe(step))

    def epoch(self, result: EpochResult) -> None:
        self._progress.console.print(self._estimate.describe_epoch(result), soft_wrap=True, highlight=False)


class ProgressLines:
    """Prints a line after the first step and then every half minute. The console flushes each line."""

    def __init__(self, console: Console, estimate: "RunEstimate", clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._estimate = console, estimate
        self._line_timer = PeriodicTimer(LINE_EVERY_S, at_once=True, clock=clock)

    def step(self, step: Step, loss: float) -> None:
        self._estimate.advance(step, loss)
        if self._line_timer.is_due():
            self._print(f"{self._estimate.describe(step)}  {self._estimate.remaining()} to go")

    def epoch(self, result: EpochResult) -> None:
        self._print(self._estimate.describe_epoch(result))

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)


class RunEstimate:
    """Estimates the loss and speed of a run by running means, and its remaining time."""

    def __init__(
        self, schedule: Schedule, batch_size: int, first_step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._schedule, self._batch_size, self._clock = schedule, batch_size, clock
        self._start_s = self._last_s = clock()
        self._start_work = self.work_done = schedule.work_before(first_step)
        self._loss: float | None = None
        self._step_s: float | None = None

    def advance(self, step: Step, loss: float) -> None:
        now = self._clock()
        taken_s, self._last_s = now - self._last_s, now
        self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        # The first step of an epoch would include the evaluation after the previous epoch.
        if self._step_s is None or step.batch == 0:
            self._step_s = self._step_s or taken_s
        else:
            self._step_s = SMOOTHING * self._step_s + (1 - SMOOTHING) * taken_s
        self.work_done = self._schedule.work_before(step.index + 1)

    def describe(self, step: Step) -> str:
        speed = self._batch_size / self._step_s if self._step_s else 0.0
        return (
            f"epoch {step.epoch + 1}/{self._schedule.epochs}  {step.size} px  "
            f"step {step.batch + 1}/{self._schedule.steps_per_epoch}  loss {self._loss or 0:.3f}  {speed:.0f} images/s"
        )

    def remaining(self) -> timedelta:
        rate = (self._clock() - self._start_s) / max(1, self.work_done - self._start_work)
        return timedelta(seconds=round(rate * (self._schedule.total_work - self.work_done)))

    def describe_epoch(self, result: EpochResult) -> str:
        return (
            f"epoch {result.epoch}/{self._schedule.epochs} done  {result.size} px  "
            f"train loss {result.train_loss:.3f} top-1 {result.train_top1:.3f}  "
            f"val loss {result.val_loss:.3f} top-1 {result.val_top1:.4f} top-5 {result.val_top5:.4f} "
            f"({result.val_photos} photos)  {result.images_per_s:.0f} images/s"
        )
