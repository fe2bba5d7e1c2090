"""Comparing two things on a machine whose speed wanders: measure them in turn, and compare neighbours.

A disturbance that lasts longer than a round meets both, and the median passes over those that do not.
"""

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise


def alternate(
    baseline: Callable[[], float], measured: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Measure A B A B ... A: `rounds` of `measured`, each between two of `baseline`."""
    baselines, values = [baseline()], []
    for _ in range(rounds):
        values.append(measured())
        baselines.append(baseline())
    return baselines, values


def neighbours(baselines: Sequence[float]) -> list[float]:
    """For each measurement, the mean of the baselines before and after it: what the baseline was at that time, where
    the machine grew steadily faster or slower."""
    return [(before + after) / 2 for before, after in pairwise(baselines)]


def median_ratio(baselines: Sequence[float], values: Sequence[float]) -> float:
    """Median of each value over the baseline around it; `baselines` has one more entry."""
    return statistics.median(value / around for value, around in zip(values, neighbours(baselines), strict=True))


def differences(baselines: Sequence[float], values: Sequence[float]) -> list[float]:
    """Each value less the baseline around it; `baselines` has one more entry."""
    return [value - around for value, around in zip(values, neighbours(baselines), strict=True)]
