"""Tests the progress of nested phases, as TensorRT reports them, and errors in the callback."""

import pytest
from zfserve_engines.tensorrt.build_progress import TOTAL, BuildProgress

Reports = list[tuple[str, int, int]]


@pytest.fixture
def reports() -> Reports:
    return []


@pytest.fixture
def progress(reports: Reports) -> BuildProgress:
    return BuildProgress(lambda *step: reports.append(step))


def test_a_phase_counts_as_part_of_the_step_it_runs_in(progress: BuildProgress, reports: Reports) -> None:
    progress.phase_start("Building", None, 2)
    progress.phase_start("Cloning", "Building", 4)
    progress.step_complete("Cloning", 0)
    progress.phase_start("Copying", "Cloning", 2)
    progress.step_complete("Copying", 0)
    assert reports == [
        ("Building", 0, TOTAL),
        ("Cloning", 0, TOTAL),
        ("Cloning", 125, TOTAL),  # 1/4 of the first of two steps is 125 of 1000
        ("Cloning", 187, TOTAL),  # 1/2 of another step of four adds 62
    ]


def test_progress_never_decreases_within_an_outermost_phase(progress: BuildProgress, reports: Reports) -> None:
    progress.phase_start("Building", None, 2)
    for name in ("Cloning", "Timing", "Timing"):  # three phases run in one step, and two have the same name
        progress.phase_start(name, "Building", 2)
        assert progress.step_complete(name, 0)
        assert progress.step_complete(name, 1)
        progress.phase_finish(name)
    progress.step_complete("Building", 0)
    progress.phase_finish("Building")
    shares = [share for _, share, _ in reports]
    assert shares == sorted(shares)
    assert shares[-1] == TOTAL
    reports.clear()
    progress.phase_start("Serializing", None, 5)
    assert reports == [("Serializing", 0, TOTAL)]


def test_an_unknown_phase_is_ignored(progress: BuildProgress, reports: Reports) -> None:
    assert progress.step_complete("Unknown", 3)
    progress.phase_finish("Unknown")
    assert reports == []


def test_stop_ends_the_build_at_its_next_step_and_its_reports(progress: BuildProgress, reports: Reports) -> None:
    progress.phase_start("Building", None, 3)
    assert progress.step_complete("Building", 0)
    progress.stop()
    reports.clear()
    assert not progress.step_complete("Building", 1)
    assert reports == []
    assert progress.failure is None


def test_an_error_of_the_callback_is_stored_and_ends_the_build() -> None:
    def fail(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    progress = BuildProgress(fail)
    progress.phase_start("Building", None, 3)
    assert isinstance(progress.failure, KeyboardInterrupt)
    assert not progress.step_complete("Building", 0)
