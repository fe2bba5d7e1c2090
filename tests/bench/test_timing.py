from collections.abc import Iterator

import pytest
from zfserve_bench.timing import times_per_s


def ticking(*times: float) -> Iterator[float]:
    yield from times


def test_counts_whole_runs_over_the_time_they_took() -> None:
    clock = ticking(100.0, 100.0, 100.4, 100.8, 101.6)
    done = []
    assert times_per_s(lambda: done.append(1), 1.5, now=lambda: next(clock)) == pytest.approx(3 / 1.6)
    assert len(done) == 3


def test_runs_once_even_where_there_is_no_time() -> None:
    clock = ticking(5.0, 5.0, 5.25)
    done = []
    assert times_per_s(lambda: done.append(1), 0.0, now=lambda: next(clock)) == 4
    assert len(done) == 1
