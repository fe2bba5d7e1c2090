import io

from rich.console import Console
from zfserve_model.training.progress import ProgressBar, ProgressLines, RunEstimate, report_count, report_run
from zfserve_model.training.recipe import Recipe, Schedule, Stage
from zfserve_model.training.state import EpochResult

SCHEDULE = Schedule(Recipe(stages=(Stage(64, 1), Stage(128, 1)), batch_size=4), photos=40)  # each epoch has ten steps
RESULT = EpochResult(1, 64, 0.1, 0.7, 0.5, 0.7, 0.5, 1.0, 6, 10.0, 1.0)


class Clock:
    """A clock that moves only when the test advances it."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self) -> None:
        self.now_s += self.step_s


def test_lines_come_with_the_first_step_and_then_every_half_minute() -> None:
    clock, output = Clock(6.0), io.StringIO()
    estimate = RunEstimate(SCHEDULE, 4, 0, clock)
    lines = ProgressLines(Console(file=output, width=20), estimate, clock)
    for index in range(10):
        clock.advance()
        lines.step(SCHEDULE.step(index), 0.5)
    printed = output.getvalue().splitlines()
    assert [line.split("  ")[2] for line in printed] == ["step 1/10", "step 6/10"]
    assert printed[0].startswith("epoch 1/2  64 px")
    assert "loss 0.500" in printed[0]
    assert "1 images/s" in printed[0]


def test_the_remaining_time_knows_that_larger_photos_take_longer() -> None:
    clock = Clock(6.0)
    estimate = RunEstimate(SCHEDULE, 4, 0, clock)
    for index in range(10):
        clock.advance()
        estimate.advance(SCHEDULE.step(index), 0.5)
    assert estimate.remaining().total_seconds() == 4 * 60  # the rest has four times the pixels of the first minute


def test_a_resumed_run_counts_only_its_own_time() -> None:
    clock = Clock(24.0)
    estimate = RunEstimate(SCHEDULE, 4, 10, clock)
    clock.advance()
    estimate.advance(SCHEDULE.step(10), 0.5)
    assert estimate.remaining().total_seconds() == 9 * 24


def test_the_console_decides_the_form() -> None:
    for terminal, expected in ((True, ProgressBar), (False, ProgressLines)):
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=100)
        with report_run(console, SCHEDULE, 4, 0) as reporter:
            assert isinstance(reporter, expected)
            reporter.step(SCHEDULE.step(0), 0.25)
            reporter.epoch(RESULT)
        assert "loss 0.250" in output.getvalue()
        assert "top-1 0.5000 top-5 1.0000 (6 photos)" in output.getvalue()


def test_counting_says_what_it_does_without_a_terminal() -> None:
    output = io.StringIO()
    with report_count(Console(file=output), "decoding", 12) as advance:
        advance(12)
    assert output.getvalue() == "decoding: 12 photos\n"
    with report_count(Console(file=output, force_terminal=True), "decoding", 12) as advance:
        advance(12)
