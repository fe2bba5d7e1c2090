"""Tests the sign change of table 1 by hand."""

import numpy as np
import pytest
from zfserve_studies.correspondence.measure import pair_distances, sign_change


def change(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_signs_are_ternary() -> None:
    # Signs: (+, -, 0, 0) and (+, +, 0, -). Two zeros agree, and a zero and a number differ: 2 of 4 differ.
    assert pair_distances([change(0.5, -2, 0, 0), change(9, 0.1, 0, -1)]) == [0.5]


def test_mean_and_deviation_are_over_pairs() -> None:
    # The pairs (1, 2), (1, 3), (2, 3) differ at 0, 1 and 1 of 2 places: mean 1/3, variance (1/9 + 1/36 + 1/36) / 2.
    result = sign_change([[change(1, 1), change(2, 2), change(1, -1)]])
    assert result.mean == pytest.approx(1 / 3)
    assert result.deviation == pytest.approx((1 / 12) ** 0.5)
    assert result.pairs == 3


def test_the_control_pools_the_pairs_of_its_draws() -> None:
    same, opposite = [change(1), change(2)], [change(1), change(-2)]
    assert sign_change([same, opposite]).mean == 0.5
    assert sign_change([same, opposite]).pairs == 2
    assert sign_change([same]).deviation is None
