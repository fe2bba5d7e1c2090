"""Admission bounds the images in flight, shares the places, and compares deadlines with the measured rate."""

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
from zfserve_server.admission.caller_identity import CallerIdentity, Priority
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.batching.fair_scheduler import FairScheduler

BULK = CallerIdentity("archive", Priority.BULK)


@dataclass(eq=False)
class Place:
    """Holds a place for a request in flight. Closing `held` ends the request."""

    caller: CallerIdentity
    held: ExitStack
    reading: None = None


def measured(row_s: float = 1.0) -> ServiceRate:
    rate = ServiceRate()
    rate.observe(1, row_s)
    return rate


def fill(admission: Admission, caller: CallerIdentity, stack: ExitStack) -> int:
    """Takes every place that `caller` can get. Returns the number of places."""
    for taken in range(1000):
        try:
            stack.enter_context(admission.admit(caller))
        except Overloaded:
            return taken
    raise AssertionError("admission has no limit")


def test_the_limit_holds_and_a_place_comes_back() -> None:
    admission = Admission(2, ServiceRate())
    with admission.admit():
        with admission.admit(), pytest.raises(Overloaded), admission.admit():
            pass
        assert admission.in_flight == 1
        with admission.admit():
            assert admission.in_flight == 2
    assert admission.in_flight == 0


def test_a_request_of_several_images_takes_as_many_places() -> None:
    admission = Admission(4, ServiceRate())
    with admission.admit(images=3):
        assert admission.in_flight == 3
        with pytest.raises(Overloaded):
            admission.admit(images=2)
    assert admission.in_flight == 0


def observable(value: object) -> object:
    """Returns the whole state of an object and of the objects it holds, as plain values."""
    if isinstance(value, dict):
        return {key: observable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [observable(entry) for entry in value]
    if hasattr(value, "__dict__") and not callable(value) and not isinstance(value, Enum):
        return observable(vars(value))
    return value


def test_a_check_changes_nothing() -> None:
    """A check that passes changes nothing, and neither does a refusal of any kind."""
    admission = Admission(4, measured())
    with admission.admit(CallerIdentity("a")), admission.admit(BULK):
        before = observable(admission)
        for caller in (CallerIdentity("a"), CallerIdentity("new"), BULK):
            for deadline in (Deadline(), Deadline.after(0.1), Deadline.after(100.0)):
                for images in (1, 2, 9):
                    with suppress(Overloaded):
                        admission.check(caller, deadline, images)
                    assert observable(admission) == before
    assert admission.in_flight == 0


def test_a_failed_request_gives_its_places_back() -> None:
    admission = Admission(1, ServiceRate())
    for _ in range(3):
        with pytest.raises(InvalidInput), admission.admit():
            raise InvalidInput("no")
    assert admission.in_flight == 0


def test_a_full_queue_says_when_the_images_ahead_are_done() -> None:
    admission = Admission(2, measured(0.5))
    with admission.admit(), admission.admit(), pytest.raises(Overloaded) as refused:
        admission.admit()
    assert refused.value.retry_after_s == pytest.approx(1.5)  # 0.5 s each: two images ahead, and its own


def test_a_request_whose_answer_would_be_late_is_refused_at_once_with_the_delay() -> None:
    admission = Admission(100, measured(1.0))
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(admission.admit())
        with pytest.raises(Overloaded) as refused:
            admission.admit(deadline=Deadline.after(8.0))
        assert refused.value.retry_after_s == pytest.approx(2.0, abs=0.1)
        stack.enter_context(admission.admit(deadline=Deadline.after(11.0)))


def test_with_nothing_in_flight_any_deadline_is_accepted_so_that_a_wrong_rate_is_measured_again() -> None:
    admission = Admission(100, measured(3600.0))
    with admission.admit(deadline=Deadline.after(1.0)), pytest.raises(Overloaded):
        admission.admit(deadline=Deadline.after(1.0))


def test_nothing_is_refused_before_the_rate_is_measured() -> None:
    admission = Admission(1000, ServiceRate())
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(admission.admit(deadline=Deadline.after(0.01)))


def test_an_overdue_run_refuses_requests_that_cannot_wait_as_long_again() -> None:
    running_s = [0.0]
    rate = ServiceRate(running_s=lambda: running_s[0])
    rate.observe(1, 0.1)
    admission = Admission(100, rate)
    running_s[0] = 10.0
    with pytest.raises(Overloaded):
        admission.admit(deadline=Deadline.after(5.0))
    with admission.admit(deadline=Deadline.after(11.0)):
        pass


def test_one_client_alone_leaves_a_place_for_the_next_and_two_share() -> None:
    admission = Admission(90, ServiceRate())
    with ExitStack() as stack:
        assert fill(admission, CallerIdentity("first"), stack) == 80  # 8/9 of the places
        second = fill(admission, CallerIdentity("second"), stack)
        assert 0 < second < 10
        assert fill(admission, CallerIdentity("third"), stack) > 0


@settings(max_examples=20)
@given(st.integers(), st.integers(30, 120))
def test_clients_that_always_send_get_equal_shares_though_one_of_them_came_first(seed: int, limit: int) -> None:
    """Admission works with the fair queue: each answer frees one place, which all clients try to take."""
    chance, admission, order = Random(seed), Admission(limit, ServiceRate()), FairScheduler[Place]()
    clients = [CallerIdentity(str(number)) for number in range(4)]
    answered = Counter[str]()

    def send(caller: CallerIdentity) -> None:
        with suppress(Overloaded), ExitStack() as stack:
            stack.enter_context(admission.admit(caller))
            order.add(Place(caller, stack.pop_all()))

    def answer() -> None:
        place = order.pop()
        assert place is not None
        place.held.close()
        answered[place.caller.client] += 1

    for _ in range(limit):
        send(clients[0])
    for step in range(4 * limit):
        answer()
        for caller in chance.sample(clients, len(clients)):
            send(caller)
        if step == 2 * limit:
            answered.clear()
    assert len(answered) == 4
    assert max(answered.values()) - min(answered.values()) <= 1


def test_bulk_leaves_half_of_the_places_free() -> None:
    admission = Admission(64, ServiceRate())
    with ExitStack() as stack:
        assert sum(fill(admission, CallerIdentity(str(number), Priority.BULK), stack) for number in range(9)) == 32
        assert fill(admission, CallerIdentity("somebody"), stack) > 20


def test_waiting_bulk_hardly_delays_interactive_requests() -> None:
    admission = Admission(1000, measured(1.0))
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(admission.admit(BULK))
        stack.enter_context(admission.admit(deadline=Deadline.after(2.5)))
        with pytest.raises(Overloaded):
            admission.admit(BULK, Deadline.after(60.0))


def test_bulk_expects_its_share_while_many_interactive_requests_are_in_flight() -> None:
    """At a share of one in eight, nine bulk images and its own take 80 turns.

    If few interactive requests are in flight, only the images in flight precede it.
    """
    admission = Admission(1000, measured(1.0))
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(admission.admit(BULK))
        stack.enter_context(admission.admit())
        with admission.admit(BULK, Deadline.after(11.5)):
            pass
        stack.enter_context(admission.admit())  # now more than one batch, which holds one image
        with pytest.raises(Overloaded):
            admission.admit(BULK, Deadline.after(79.0))
        stack.enter_context(admission.admit(BULK, Deadline.after(81.0)))
