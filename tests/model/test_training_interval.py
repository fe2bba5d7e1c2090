"""A periodic timer is due once in each interval."""

from zfserve_model.training.interval import Interval


def test_it_is_due_once_in_every_interval() -> None:
    times_s = iter([100.0, 100.0, 129.9, 130.0, 130.1, 159.9, 300.0, 329.0])
    interval = Interval(30, at_once=False, clock=lambda: next(times_s))
    assert [interval.is_over() for _ in range(7)] == [False, False, True, False, False, True, False]


def test_the_first_may_be_due_at_once() -> None:
    interval = Interval(30, at_once=True, clock=lambda: 100.0)
    assert [interval.is_over() for _ in range(3)] == [True, False, False]
