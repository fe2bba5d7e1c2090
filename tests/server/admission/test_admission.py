"""Who is taken on: places and their shares, deadlines against the measured pace."""

from collections import Counter, deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zfserve_runtime.errors import InvalidInput, Overloaded
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_server.admission.admission import Admission
from zfserve_server.admission.senders import Priority, Sender
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.batching.fair_queue import FairScheduler

BULK = Sender("archive", Priority.BULK)


@dataclass(eq=False)
class Place:
    """A request under way; closing `held` ends it."""

    sender: Sender
    held: ExitStack


def measured(row_s: float = 1.0) -> ServiceRate:
    pace = ServiceRate()
    pace.observe(1, row_s)
    return pace


def fill(admission: Admission, sender: Sender, stack: ExitStack) -> int:
    """Take every place that `sender` gets; returns how many."""
    for taken in range(1000):
        try:
            stack.enter_context(admission.admit(sender))
        except Overloaded:
            return taken
    raise AssertionError("there is no end to it")


def test_the_limit_holds_and_a_place_comes_back() -> None:
    admission = Admission(2, ServiceRate())
    with admission.admit():
        with admission.admit(), pytest.raises(Overloaded), admission.admit():
            pass
        assert admission.accepted == 1
        with admission.admit():
            assert admission.accepted == 2
    assert admission.accepted == 0


def test_a_request_of_several_images_takes_as_many_places() -> None:
    admission = Admission(4, ServiceRate())
    with admission.admit(rows=3):
        assert admission.accepted == 3
        with pytest.raises(Overloaded):
            admission.admit(rows=2)
    assert admission.accepted == 0


def observable(value: object) -> object:
    """Returns all that an object and the objects it holds can be told by, as plain values."""
    if isinstance(value, dict):
        return {key: observable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [observable(entry) for entry in value]
    if hasattr(value, "__dict__") and not callable(value) and not isinstance(value, Enum):
        return observable(vars(value))
    return value


def test_a_check_changes_nothing() -> None:
    """Neither one that passes nor one that is refused, whatever the reason."""
    admission = Admission(4, measured())
    with admission.admit(Sender("a")), admission.admit(BULK):
        before = observable(admission)
        for sender in (Sender("a"), Sender("new"), BULK):
            for deadline in (Deadline(), Deadline.after(0.1), Deadline.after(100.0)):
                for rows in (1, 2, 9):
                    with suppress(Overloaded):
                        admission.check(sender, deadline, rows)
                    assert observable(admission) == before
    assert admission.accepted == 0


def test_a_failed_request_gives_its_places_back() -> None:
    admission = Admission(1, ServiceRate())
    for _ in range(3):
        with pytest.raises(InvalidInput), admission.admit():
            raise InvalidInput("no")
    assert admission.accepted == 0


def test_a_full_queue_says_when_those_ahead_are_done() -> None:
    admission = Admission(2, measured(0.5))
    with admission.admit(), admission.admit(), pytest.raises(Overloaded) as refused:
        admission.admit()
    assert refused.value.retry_after_s == pytest.approx(1.5)  # two ahead, and its own


def test_an_answer_that_would_come_too_late_is_refused_at_once_with_the_time_it_is_late_by() -> None:
    admission = Admission(100, measured(1.0))
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(admission.admit())
        with pytest.raises(Overloaded) as refused:
            admission.admit(deadline=Deadline.after(8.0))
        assert refused.value.retry_after_s == pytest.approx(2.0, abs=0.1)
        stack.enter_context(admission.admit(deadline=Deadline.after(11.0)))


def test_where_nothing_is_under_way_any_deadline_is_tried_and_a_wrong_pace_is_measured_anew() -> None:
    admission = Admission(100, measured(3600.0))
    with admission.admit(deadline=Deadline.after(1.0)), pytest.raises(Overloaded):
        admission.admit(deadline=Deadline.after(1.0))


def test_nobody_is_refused_on_a_guess() -> None:
    admission = Admission(1000, ServiceRate())
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(admission.admit(deadline=Deadline.after(0.01)))


def test_a_run_that_does_not_end_keeps_out_whoever_cannot_wait_as_long_again() -> None:
    running_s = [0.0]
    pace = ServiceRate(running_s=lambda: running_s[0])
    pace.observe(1, 0.1)
    admission = Admission(100, pace)
    running_s[0] = 10.0
    with pytest.raises(Overloaded):
        admission.admit(deadline=Deadline.after(5.0))
    with admission.admit(deadline=Deadline.after(11.0)):
        pass


def test_one_client_alone_leaves_a_place_for_the_next_and_two_share() -> None:
    admission = Admission(90, ServiceRate())
    with ExitStack() as stack:
        assert fill(admission, Sender("first"), stack) == 80  # 8/9
        second = fill(admission, Sender("second"), stack)
        assert 0 < second < 10
        assert fill(admission, Sender("third"), stack) > 0


@settings(max_examples=20)
@given(st.integers(), st.integers(30, 120))
def test_clients_that_press_get_equal_shares_whatever_the_first_one_held(seed: int, limit: int) -> None:
    """Admission and the waiting line together: each answer makes room for one, and all press in any order."""
    chance, admission, order = Random(seed), Admission(limit, ServiceRate()), FairScheduler[Place]()
    clients = [Sender(str(number)) for number in range(4)]
    answered = Counter[str]()

    def press(sender: Sender) -> None:
        with suppress(Overloaded), ExitStack() as stack:
            stack.enter_context(admission.admit(sender))
            order.add(Place(sender, stack.pop_all()))

    def answer() -> None:
        place = order.pop()
        assert place is not None
        place.held.close()
        answered[place.sender.client] += 1

    for _ in range(limit):
        press(clients[0])
    for step in range(4 * limit):
        answer()
        for sender in chance.sample(clients, len(clients)):
            press(sender)
        if step == 2 * limit:
            answered.clear()
    assert len(answered) == 4
    assert max(answered.values()) - min(answered.values()) <= 1


def test_bulk_leaves_half_of_the_places_to_others() -> None:
    admission = Admission(64, ServiceRate())
    with ExitStack() as stack:
        assert sum(fill(admission, Sender(str(number), Priority.BULK), stack) for number in range(9)) == 32
        assert fill(admission, Sender("somebody"), stack) > 20


def test_bulk_that_waits_hardly_delays_what_is_interactive() -> None:
    admission = Admission(1000, measured(1.0))
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(admission.admit(BULK))
        stack.enter_context(admission.admit(deadline=Deadline.after(2.5)))
        with pytest.raises(Overloaded):
            admission.admit(BULK, Deadline.after(60.0))


def test_bulk_counts_on_the_share_that_it_gets_where_a_crowd_is_interactive() -> None:
    """Then nine ahead of it and itself take eighty turns, and else those under way are all that come before it."""
    admission = Admission(1000, measured(1.0))
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(admission.admit(BULK))
        stack.enter_context(admission.admit())
        with admission.admit(BULK, Deadline.after(11.5)):
            pass
        stack.enter_context(admission.admit())  # more than a batch, of one, holds
        with pytest.raises(Overloaded):
            admission.admit(BULK, Deadline.after(79.0))
        stack.enter_context(admission.admit(BULK, Deadline.after(81.0)))
