import pytest
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report, missed

FLOOR, CEILING = Limit("at least", 0.92), Limit("at most", 1.5)


def finding(value: float, limit: Limit | None) -> Finding:
    return Finding(f"{value}", Quantity(value), None, Quantity(value), limit)


@pytest.mark.parametrize(
    ("limit", "value", "holds"),
    [
        (FLOOR, 0.93, True),
        (FLOOR, 0.92, True),
        (FLOOR, 0.919, False),
        (CEILING, 1.4, True),
        (CEILING, 1.5, True),
        (CEILING, 1.51, False),
        (FLOOR, float("nan"), False),
        (CEILING, float("nan"), False),
    ],
)
def test_a_limit_holds_up_to_its_bound_and_never_for_nan(limit: Limit, value: float, holds: bool) -> None:
    assert limit.holds(value) is holds
    assert finding(value, limit).holds is holds


def test_only_findings_with_a_limit_can_miss_it() -> None:
    over, under, free = finding(2.0, CEILING), finding(1.0, CEILING), finding(99.0, None)
    assert free.holds is None
    reports = [Report("one", "", "", (under, free)), Report("two", "", "", (over,))]
    assert missed(reports) == [over]
    assert missed([]) == []


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (Quantity(0.9234), "0.92"),
        (Quantity(17.46, "ms"), "17.5 ms"),
        (Quantity(1424.4, "ms"), "1,424 ms"),
        (Quantity(-0.25, "ms"), "-0.25 ms"),
        (Quantity(0), "0"),
        (Quantity(12_345, "calls"), "12,345 calls"),
        (Quantity(float("nan"), "ms"), "none"),
    ],
)
def test_quantities_have_three_digits_and_their_unit(quantity: Quantity, text: str) -> None:
    assert str(quantity) == text
