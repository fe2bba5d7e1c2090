import pytest
from zfserve_server.admission.service_rate import FIRST_GUESS_S, REMEMBERED, ServiceRate


def observed(*batches: tuple[int, float], engines: int = 1, running_s: float = 0.0) -> ServiceRate:
    pace = ServiceRate(engines, lambda: running_s)
    for rows, seconds in batches:
        pace.observe(rows, seconds)
    return pace


def test_a_guess_until_something_was_measured() -> None:
    assert not ServiceRate().measured
    assert ServiceRate().finish_s(3) == pytest.approx(4 * FIRST_GUESS_S)
    assert observed((1, 2.0)).measured
    assert observed((1, 2.0)).finish_s(0) == 2.0


def test_an_image_waits_for_those_ahead_and_for_its_whole_batch() -> None:
    pace = observed(*[(4, 2.0)] * 8)
    assert pace.row_s == 0.5
    assert pace.finish_s(0) == 2.0
    assert pace.finish_s(6) == 5.0
    assert pace.finish_s(6, rows=10) == 8.0


def test_the_time_until_answers_are_handed_out_comes_on_top() -> None:
    pace = ServiceRate()
    for delivery_s in (*[0.25] * 20, 60.0):
        pace.observe(4, 2.0, delivery_s)
    assert pace.finish_s(0) == 2.25
    assert pace.finish_s(6) == 5.25


def test_engines_side_by_side_share_those_ahead_but_not_a_batch() -> None:
    assert observed(*[(4, 2.0)] * 8, engines=2).finish_s(6) == 3.5


def test_one_pause_of_the_machine_changes_nothing_and_a_lasting_change_is_followed() -> None:
    pace = observed(*[(1, 1.0)] * 20, (1, 600.0))
    assert pace.row_s == 1.0
    for _ in range(REMEMBERED):
        pace.observe(1, 3.0)
    assert pace.row_s == 3.0


def test_a_run_that_lasts_too_long_is_taken_to_last_as_long_again() -> None:
    usual = [(4, 2.0)] * 8
    assert observed(*usual, running_s=3.9).overdue_s() == 0.0
    assert observed(*usual, running_s=30.0).overdue_s() == 30.0
    assert observed(*usual, running_s=30.0).finish_s(0) == 32.0
    assert observed(running_s=30.0).overdue_s() == 0.0, "the first batch may take long"
