"""Tests that small numbers keep their digits."""

import pytest
from zfserve_cli.short_number import short_number


@pytest.mark.parametrize(
    ("value", "decimals", "sign", "text"),
    [
        (0.0, 2, "-", "0.00"),
        (12.345, 2, "-", "12.35"),
        (-0.5, 2, "-", "-0.50"),
        (0.0342, 2, "-", "0.034"),
        (0.25, 3, "+", "+0.250"),
        (0.00123, 3, "+", "+0.0012"),
        (-0.0000123, 3, "+", "-1.2e-05"),
        (0.0, 3, "+", "+0.000"),
    ],
)
def test_small_numbers_keep_two_digits(value: float, decimals: int, sign: str, text: str) -> None:
    assert short_number(value, decimals, sign) == text
