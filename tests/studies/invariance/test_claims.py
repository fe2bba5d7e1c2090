"""Tests the numbers behind each claim about invariance, by hand, and the verdicts on both sides of the criteria."""

import pytest
from fakes.swept_photos import Row, sweep, swept
from zfserve.studies import TransformKind
from zfserve_studies.invariance.claims import Claim, first_share, judge_claims, kept_share, linearity
from zfserve_studies.invariance.study import change_size

LINE: list[Row] = [
    (-60, 1.0, 0.6, 0.25, 1),
    (-30, 0.75, 0.3, 0.5, 1),
    (-6, 0.5, 0.06, 0.5, 1),
    (0, 0, 0, 0.5, 1),
    (6, 0.7, 0.06, 0.5, 1),
    (30, 0.75, 0.3, 0.5, 1),
    (60, 1.0, 0.6, 0.5, 1),
]
"""The low layer jumps at the smallest step, and the high one moves on a line through zero."""


def claims_of(*sweeps_of_photos: tuple[TransformKind, list[Row]]) -> list[Claim]:
    return judge_claims([swept(f"{at}.jpg", sweep(kind, rows)) for at, (kind, rows) in enumerate(sweeps_of_photos)])


@pytest.mark.parametrize(
    ("kind", "step", "size"),
    [
        ("vertical-translation", -6, 6),
        ("scale", 0.75, 0.25),
        ("brightness", 1.5, 0.5),
        ("rotation", 350, 10),
        ("rotation", 90, 90),
        ("rotation", 360, 0),
        ("hue", 200, 160),
        ("horizontal-flip", 1, 1),
    ],
)
def test_the_size_of_a_change(kind: TransformKind, step: float, size: float) -> None:
    assert change_size(kind, step) == pytest.approx(size)


def test_the_first_share_is_the_mean_over_both_smallest_steps() -> None:
    moved = sweep("vertical-translation", LINE)
    assert first_share(moved, lambda step: step.low) == pytest.approx((0.5 + 0.7) / 2 / 1.0)
    assert first_share(moved, lambda step: step.high) == pytest.approx(0.06 / 0.6)
    still = sweep("scale", [(1, 0, 0, 0.5, 1), (1.5, 0, 0, 0.5, 1)])
    assert first_share(still, lambda step: step.low) is None


def test_a_line_through_zero_explains_all_or_little() -> None:
    assert linearity(sweep("vertical-translation", LINE)) == pytest.approx([1, 1])
    # A curve that jumps to 1 and stays there: values (1, 1, 0.4) at (1, 2, 3). The slope is (1 + 2 + 1.2) / 14 = 0.3.
    # The residuals are 0.7, 0.4 and -0.5, so R² = 1 - (0.49 + 0.16 + 0.25) / (0.04 + 0.04 + 0.16) = -2.75.
    bent = sweep("vertical-translation", [(at, 0, value, 0.5, 1) for at, value in ((0, 0), (1, 1), (2, 1), (3, 0.4))])
    assert linearity(bent) == pytest.approx([-2.75])
    assert linearity(sweep("scale", [(1, 0, 0, 0.5, 1), (1.5, 0, 0.3, 0.5, 1)])) == []


def test_the_kept_share_leaves_the_untouched_step_out() -> None:
    assert kept_share(sweep("scale", [(1, 0, 0, 0.5, 1), (1.2, 1, 1, 0.5, 1), (1.4, 1, 1, 0.5, 2)])) == 0.5
    assert kept_share(sweep("scale", [(1, 0, 0, 0.5, 1)])) == 1


def test_the_claims_about_a_translation_hold() -> None:
    small, line, stable = claims_of(("vertical-translation", LINE))
    assert (small.holds, line.holds, stable.holds) == (True, True, True)
    assert small.measured == "first layer 60%, top 10% (medians)"
    assert line.measured == "R² 1.00 (median)"
    # Six steps change something. Their mean probability is (0.25 + 5 * 0.5) / 6 = 0.458.
    assert stable.measured == "it stays at 100%; the class has 46% on average, and 50% untouched"
    assert small.sentence == (
        "vertical translation: a small change has a dramatic effect in the first layer, and a lesser one at the top. "
        "Holds: first layer 60%, top 10% (medians). It holds if at the smallest step, the first layer has moved by at "
        "least 50% of its most, the top by less."
    )


def test_the_claims_about_a_translation_do_not_hold() -> None:
    rows: list[Row] = [(0, 0, 0, 0.5, 1), (10, 0.1, 0.9, 0.1, 2), (20, 0.5, 1.0, 0.1, 2), (30, 1, 0.9, 0.1, 1)]
    small, line, stable = claims_of(("vertical-translation", rows))
    assert (small.holds, line.holds, stable.holds) == (False, False, False)
    assert small.measured == "first layer 10%, top 90% (medians)"
    assert stable.measured.startswith("it stays at 33%")


def test_a_rotation_names_the_exceptions() -> None:
    turned: list[Row] = [(0, 0, 0, 0.5, 1), (90, 1, 1, 0.1, 2), (180, 1, 1, 0.1, 2)]
    round_: list[Row] = [(0, 0, 0, 0.5, 1), (90, 1, 1, 0.5, 1), (180, 1, 1, 0.5, 1)]
    _, rotation = claims_of(("rotation", turned), ("rotation", round_))
    assert rotation.holds is True
    assert rotation.measured.startswith("it stays at 50%")
    assert rotation.measured.endswith("exceptions: 1.jpg")
    assert claims_of(("rotation", round_))[1].holds is False


def test_colour_is_compared_over_the_whole_sweep() -> None:
    rows: list[Row] = [(0, 0, 0, 0.5, 1), (120, 0.8, 0.2, 0.5, 1), (240, 0.4, 0.2, 0.5, 1)]
    colour, stable = claims_of(("hue", rows))
    assert (colour.holds, colour.measured) == (True, "3.00 times as far (median)")
    assert "not a claim of the paper" in colour.claim
    assert stable.holds is True
    rows = [(0, 0, 0, 0.5, 1), (120, 0.4, 0.4, 0.5, 1)]
    assert claims_of(("hue", rows))[0].holds is False


def test_a_network_without_layers_leaves_the_claims_about_layers_open() -> None:
    photo = swept("a.jpg", sweep("vertical-translation", LINE, layers=False), sweep("hue", LINE, layers=False))
    small, line, stable, colour, _ = judge_claims([photo])
    assert (small.holds, line.holds, stable.holds, colour.holds) == (None, None, True, None)
    assert small.verdict == "not measured"
