"""A periodic timer is due once in each period."""

from zfserve_model.training.periodic_timer import PeriodicTimer


def test_it_is_due_once_in_each_period() -> None:
    times_s = iter([100.0, 100.0, 129.9, 130.0, 130.1, 159.9, 300.0, 329.0])
    timer = PeriodicTimer(30, at_once=False, clock=lambda: next(times_s))
    assert [timer.is_due() for _ in range(7)] == [False, False, True, False, False, True, False]


def test_it_may_be_due_at_once() -> None:
    timer = PeriodicTimer(30, at_once=True, clock=lambda: 100.0)
    assert [timer.is_due() for _ in range(3)] == [True, False, False]
