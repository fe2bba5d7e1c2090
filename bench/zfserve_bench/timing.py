"""Measures how often per second a piece of work runs."""

import time
from collections.abc import Callable


def times_per_s(work: Callable[[], object], seconds: float, now: Callable[[], float] = time.perf_counter) -> float:
    """Repeats `work` for about `seconds`, at least once, and returns how often per second it ran."""
    began = now()
    done = 0
    while (elapsed := now() - began) < seconds or not done:
        work()
        done += 1
    return done / elapsed
