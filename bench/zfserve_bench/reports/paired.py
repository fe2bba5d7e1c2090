"""Measures in pairs: alternates a baseline and a measurement, and compares each measurement with its neighbours.

The speed of a machine drifts. A disturbance that is longer than a round affects both sides. The median ignores
shorter disturbances.
"""

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise


def alternate(
    baseline: Callable[[], float], measured: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Measures A B A B ... A: `measured` in each round, between two measurements of `baseline`."""
    baselines, values = [baseline()], []
    for _ in range(rounds):
        values.append(measured())
        baselines.append(baseline())
    return baselines, values


def surrounding_baselines(baselines: Sequence[float]) -> list[float]:
    """Returns, for each measurement, the mean of the baselines before and after it.

    This is the baseline at the time of the measurement if the speed of the machine changes steadily.
    """
    return [(before + after) / 2 for before, after in pairwise(baselines)]


def median_ratio(baselines: Sequence[float], values: Sequence[float]) -> float:
    """Returns the median ratio of a value to the baseline around it. `baselines` has one more entry than `values`."""
    return statistics.median(
        value / around for value, around in zip(values, surrounding_baselines(baselines), strict=True)
    )


def differences(baselines: Sequence[float], values: Sequence[float]) -> list[float]:
    """Returns each value minus the baseline around it. `baselines` has one more entry than `values`."""
    return [value - around for value, around in zip(values, surrounding_baselines(baselines), strict=True)]
