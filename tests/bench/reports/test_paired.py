import pytest
from zfserve_bench.reports.paired import alternate, differences, median_ratio, surrounding_baselines


def test_alternate_puts_every_measurement_between_two_of_the_baseline() -> None:
    order: list[str] = []

    def take(name: str) -> float:
        order.append(name)
        return float(len(order))

    baselines, values = alternate(lambda: take("A"), lambda: take("B"), rounds=3)
    assert "".join(order) == "ABABABA"
    assert baselines == [1, 3, 5, 7]
    assert values == [2, 4, 6]


def test_a_machine_that_slows_steadily_does_not_change_the_ratio() -> None:
    """The baseline falls from 100 to 60. The measurement is always 0.9 of the baseline at its time."""
    baselines = [100.0, 80.0, 60.0]
    assert surrounding_baselines(baselines) == [90, 70]
    assert median_ratio(baselines, [81.0, 63.0]) == pytest.approx(0.9)


def test_one_disturbed_round_does_not_count() -> None:
    baselines = [10.0, 10.0, 10.0, 10.0]
    assert median_ratio(baselines, [9.0, 2.0, 9.0]) == pytest.approx(0.9)


def test_differences_are_from_the_baseline_at_their_time() -> None:
    assert differences([10.0, 20.0, 40.0], [16.0, 30.0]) == [1, 0]


def test_measurements_without_their_baselines_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        median_ratio([10.0, 10.0], [9.0, 9.0])
    with pytest.raises(ValueError, match="zip"):
        differences([10.0, 10.0], [9.0, 9.0])
