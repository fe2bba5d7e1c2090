"""Who is next, and that whoever waits for somebody hears of them."""

import threading
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from zfserve_server.admission.caller_identity import CallerIdentity, Priority
from zfserve_server.batching.fair_queue import BULK_EVERY, FairQueue, FairScheduler

INTERACTIVE, BULK = Priority


@dataclass(eq=False)
class Image:
    caller: CallerIdentity
    number: int = 0


CALLERS = st.builds(CallerIdentity, st.sampled_from("abc"), st.sampled_from(Priority))
MOVES = st.lists(st.one_of(CALLERS, st.none()), max_size=200)
"""Arrivals, and None for an image that is taken."""


def in_line(scheduler: FairScheduler[Image], *callers: CallerIdentity) -> list[Image]:
    images = [Image(caller, number) for number, caller in enumerate(callers)]
    for image in images:
        scheduler.add(image)
    return images


def drain(scheduler: FairScheduler[Image]) -> list[Image]:
    return [image for _ in range(len(scheduler)) if (image := scheduler.pop()) is not None]


def test_one_client_is_served_in_the_order_of_its_requests() -> None:
    scheduler = FairScheduler[Image]()
    images = in_line(scheduler, *[CallerIdentity("a")] * 5)
    assert drain(scheduler) == images
    assert scheduler.pop() is None


def test_clients_take_turns() -> None:
    scheduler = FairScheduler[Image]()
    in_line(scheduler, *map(CallerIdentity, "aaaabbc"))
    assert "".join(image.caller.client for image in drain(scheduler)) == "abcabaa"


def test_interactive_goes_first_and_bulk_has_its_share() -> None:
    scheduler = FairScheduler[Image]()
    in_line(scheduler, *[CallerIdentity("a", BULK)] * 3, *[CallerIdentity("a")] * 16)
    taken = "".join(image.caller.priority[0] for image in drain(scheduler))
    assert taken == "iiiiiii" + "b" + "iiiiiii" + "b" + "ii" + "b"


@given(MOVES)
def test_the_rule_of_the_line(moves: list[CallerIdentity | None]) -> None:
    """Everyone is taken once, a client's own in order; interactive goes first, but while bulk waits one in eight is
    bulk; and of clients that wait side by side nobody is taken twice before the other is taken once."""
    scheduler, waiting, taken = FairScheduler[Image](), list[Image](), list[Image]()
    since_bulk = 0
    since_taken = Counter[tuple[CallerIdentity, CallerIdentity]]()  # (who was taken, who waited): times in a row
    for number, caller in enumerate([*moves, *[None] * len(moves)]):
        if caller is not None:
            waiting.append(image := Image(caller, number))
            scheduler.add(image)
            continue
        image_or_none = scheduler.pop()
        assert (image_or_none is None) == (not waiting)
        if image_or_none is None:
            continue
        image = image_or_none
        assert image.number == min(other.number for other in waiting if other.caller == image.caller)
        classes = {other.caller.priority for other in waiting}
        if image.caller.priority is BULK:
            assert since_bulk == BULK_EVERY - 1 or classes == {BULK}
        since_bulk = since_bulk + 1 if image.caller.priority is INTERACTIVE and BULK in classes else 0
        assert since_bulk < BULK_EVERY
        waiting.remove(image)
        taken.append(image)
        for other in {other.caller for other in waiting} - {image.caller}:
            since_taken[image.caller, other] += 1
            assert since_taken[image.caller, other] <= 1 or other.priority is not image.caller.priority
        for pair in [pair for pair in since_taken if pair[1] == image.caller or not any_waits(waiting, pair[1])]:
            del since_taken[pair]
    assert len(taken) == len(set(map(id, taken))) == sum(move is not None for move in moves)
    assert len(scheduler) == 0


def any_waits(waiting: list[Image], caller: CallerIdentity) -> bool:
    return any(image.caller == caller for image in waiting)


@given(st.lists(CALLERS, min_size=1, max_size=30), st.data())
def test_whoever_withdraws_is_not_taken(callers: list[CallerIdentity], data: st.DataObject) -> None:
    queue = FairQueue[Image]()
    images = [Image(caller) for caller in callers]
    for image in images:
        queue.add(image)
    gone = data.draw(st.sets(st.sampled_from(images)))
    for image in [*gone, *gone]:
        queue.remove(image)
    assert len(queue) == len(images) - len(gone)
    assert set(queue.close(0)) == set(images) - gone


def test_whoever_withdraws_too_late_is_told_so_without_being_spelt_out() -> None:
    class Unspeakable(Image):
        def __repr__(self) -> str:
            raise AssertionError("an image has 150,528 numbers")

    queue = FairQueue[Image]()
    taken, waiting = Unspeakable(CallerIdentity(), 0), Unspeakable(CallerIdentity(), 1)
    queue.add(taken)
    queue.add(waiting)
    assert queue.take_batch(1, lambda image: True) == [taken]
    assert not queue.remove(taken)
    assert queue.remove(waiting)
    assert not queue.remove(waiting)
    assert len(queue) == 0


def test_those_that_are_not_live_are_left_out_and_do_not_come_back() -> None:
    queue = FairQueue[Image]()
    for number in range(5):
        queue.add(Image(CallerIdentity(), number))
    assert [image.number for image in queue.take_batch(2, lambda image: image.number % 2 == 1)] == [1, 3]
    assert [image.number for image in queue.take_batch(2, lambda image: True)] == [4]


def test_a_line_that_is_closed_gives_nothing_and_lets_everyone_go() -> None:
    queue = FairQueue[Image]()
    threads = [threading.Thread(target=queue.take_batch, args=(4, lambda image: True)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert queue.close(len(threads)) == []
    for thread in threads:
        thread.join()
    assert queue.take_batch(1, lambda image: True) == []


def test_images_from_one_thread_reach_several_each_once() -> None:
    queue, taken = FairQueue[Image](), list[Image]()

    def run() -> None:
        while batch := queue.take_batch(3, lambda image: True):
            taken.extend(batch)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    images = [Image(CallerIdentity(str(number % 5), (INTERACTIVE, BULK)[number % 2]), number) for number in range(2000)]
    for image in images:
        queue.add(image)
    left = queue.close(len(threads))
    for thread in threads:
        thread.join()
    assert Counter(map(id, [*taken, *left])) == Counter(map(id, images))
