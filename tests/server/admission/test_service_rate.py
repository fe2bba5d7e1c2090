"""The service rate estimates when images are answered."""

import pytest
from zfserve_server.admission.service_rate import FIRST_GUESS_S, MEASURED_BATCHES, ServiceRate


def observed(*batches: tuple[int, float], engines: int = 1, running_s: float = 0.0) -> ServiceRate:
    rate = ServiceRate(engines, lambda: running_s)
    for rows, seconds in batches:
        rate.observe(rows, seconds)
    return rate


def test_the_estimate_is_a_guess_until_a_batch_is_observed() -> None:
    assert not ServiceRate().measured
    assert ServiceRate().finish_s(3) == pytest.approx(4 * FIRST_GUESS_S)
    assert observed((1, 2.0)).measured
    assert observed((1, 2.0)).finish_s(0) == 2.0


def test_an_image_waits_for_the_images_ahead_and_for_its_whole_batch() -> None:
    rate = observed(*[(4, 2.0)] * 8)
    assert rate.row_s == 0.5
    assert rate.finish_s(0) == 2.0
    assert rate.finish_s(6) == 5.0
    assert rate.finish_s(6, rows=10) == 8.0


def test_the_delivery_time_is_added() -> None:
    rate = ServiceRate()
    for delivery_s in (*[0.25] * 20, 60.0):
        rate.observe(4, 2.0, delivery_s)
    assert rate.finish_s(0) == 2.25
    assert rate.finish_s(6) == 5.25


def test_parallel_engines_share_the_images_ahead_but_not_a_batch() -> None:
    assert observed(*[(4, 2.0)] * 8, engines=2).finish_s(6) == 3.5


def test_one_pause_of_the_machine_changes_nothing_but_a_lasting_change_does() -> None:
    rate = observed(*[(1, 1.0)] * 20, (1, 600.0))
    assert rate.row_s == 1.0
    for _ in range(MEASURED_BATCHES):
        rate.observe(1, 3.0)
    assert rate.row_s == 3.0


def test_an_overdue_run_is_expected_to_last_as_long_again() -> None:
    usual = [(4, 2.0)] * 8
    assert observed(*usual, running_s=3.9).overdue_s() == 0.0
    assert observed(*usual, running_s=30.0).overdue_s() == 30.0
    assert observed(*usual, running_s=30.0).finish_s(0) == 32.0
    assert observed(running_s=30.0).overdue_s() == 0.0, "the first batch may take long"
