"""Tests the order in which entries are taken, and the wake-ups of the threads that take them."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zfserve_server.admission.caller_identity import CallerIdentity, Priority
from zfserve_server.batching.fair_queue import BatchLimits, FairQueue
from zfserve_server.batching.fair_scheduler import BULK_EVERY, FairScheduler

INTERACTIVE, BULK = Priority


@dataclass(eq=False)
class Image:
    caller: CallerIdentity
    number: int = 0
    reading: object = None


CALLERS = st.builds(CallerIdentity, st.sampled_from("abc"), st.sampled_from(Priority))
MOVES = st.lists(st.one_of(CALLERS, st.none()), max_size=200)
"""Each entry adds an image of that caller, or, if it is None, takes an image."""


def up_to(entries: int) -> Callable[[Image], BatchLimits]:
    return lambda first: BatchLimits(entries, entries)


def add_images(scheduler: FairScheduler[Image], *callers: CallerIdentity) -> list[Image]:
    images = [Image(caller, number) for number, caller in enumerate(callers)]
    for image in images:
        scheduler.add(image)
    return images


def drain(scheduler: FairScheduler[Image]) -> list[Image]:
    return [image for _ in range(len(scheduler)) if (image := scheduler.pop()) is not None]


def test_one_client_is_served_in_the_order_of_its_requests() -> None:
    scheduler = FairScheduler[Image]()
    images = add_images(scheduler, *[CallerIdentity("a")] * 5)
    assert drain(scheduler) == images
    assert scheduler.pop() is None


def test_clients_take_turns() -> None:
    scheduler = FairScheduler[Image]()
    add_images(scheduler, *map(CallerIdentity, "aaaabbc"))
    assert "".join(image.caller.client for image in drain(scheduler)) == "abcabaa"


def test_interactive_precedes_bulk_and_bulk_gets_its_share() -> None:
    scheduler = FairScheduler[Image]()
    add_images(scheduler, *[CallerIdentity("a", BULK)] * 3, *[CallerIdentity("a")] * 16)
    taken = "".join(image.caller.priority[0] for image in drain(scheduler))
    assert taken == "iiiiiii" + "b" + "iiiiiii" + "b" + "ii" + "b"


@given(MOVES)
def test_the_order_is_fair(moves: list[CallerIdentity | None]) -> None:
    """Each image is taken once, and the images of one client are taken in order.

    Interactive images precede bulk images, but while bulk waits, one image in eight is bulk. If two clients wait, no
    client is taken twice before the other is taken once.
    """
    scheduler, waiting, taken = FairScheduler[Image](), list[Image](), list[Image]()
    since_bulk = 0
    # By (taken, waiting): the times in a row that the first caller was taken while the second waited.
    since_taken: Counter[tuple[CallerIdentity, CallerIdentity]] = Counter()
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
def test_a_removed_image_is_not_taken(callers: list[CallerIdentity], data: st.DataObject) -> None:
    queue = FairQueue[Image]()
    images = [Image(caller) for caller in callers]
    for image in images:
        queue.add(image)
    removed = data.draw(st.sets(st.sampled_from(images)))
    for image in [*removed, *removed]:
        queue.remove(image)
    assert len(queue) == len(images) - len(removed)
    assert set(queue.close(0)) == set(images) - removed


def test_remove_returns_false_for_a_taken_image_and_does_not_format_it() -> None:
    class Unformattable(Image):
        def __repr__(self) -> str:
            raise AssertionError("an image has 150,528 numbers")

    queue = FairQueue[Image]()
    taken, waiting = Unformattable(CallerIdentity(), 0), Unformattable(CallerIdentity(), 1)
    queue.add(taken)
    queue.add(waiting)
    assert queue.take_batch(up_to(1), lambda image: True) == [taken]
    assert not queue.remove(taken)
    assert queue.remove(waiting)
    assert not queue.remove(waiting)
    assert len(queue) == 0


def test_images_that_are_not_live_are_dropped() -> None:
    queue = FairQueue[Image]()
    for number in range(5):
        queue.add(Image(CallerIdentity(), number))
    assert [image.number for image in queue.take_batch(up_to(2), lambda image: image.number % 2 == 1)] == [1, 3]
    assert [image.number for image in queue.take_batch(up_to(2), lambda image: True)] == [4]


def test_a_closed_queue_gives_nothing_and_wakes_every_thread() -> None:
    queue = FairQueue[Image]()
    threads = [threading.Thread(target=queue.take_batch, args=(up_to(4), lambda image: True)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert queue.close(len(threads)) == []
    for thread in threads:
        thread.join()
    assert queue.take_batch(up_to(1), lambda image: True) == []


def test_several_threads_take_each_image_once() -> None:
    queue, taken = FairQueue[Image](), list[Image]()

    def run() -> None:
        while batch := queue.take_batch(up_to(3), lambda image: True):
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


def study(client: str, reading: object) -> Image:
    return Image(CallerIdentity(client, BULK), reading=reading)


def take(queue: FairQueue[Image], entries: int = 8, bulk: int = 3) -> list[Image]:
    return queue.take_batch(lambda first: BatchLimits(entries, bulk), lambda image: True)


def filled(*images: Image) -> FairQueue[Image]:
    queue = FairQueue[Image]()
    for image in images:
        queue.add(image)
    return queue


def test_a_batch_has_entries_of_one_engine() -> None:
    queue = filled(*(study("a", number % 2) for number in range(6)), *(Image(CallerIdentity("a", BULK)),) * 1)
    batches = [take(queue) for _ in range(3)]
    assert [{image.reading for image in batch} for batch in batches] == [{0}, {1}, {None}]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert queue.readings == len(queue) == 0


def test_clients_with_different_engines_take_turns() -> None:
    queue = filled(*(study("a", "p") for _ in range(8)), *(study("b", "q") for _ in range(8)))
    assert ["".join(image.caller.client for image in take(queue, 4)) for _ in range(4)] == ["aaaa", "bbbb"] * 2


def test_clients_with_the_same_engine_share_a_batch() -> None:
    queue = filled(*(study("a", "p") for _ in range(3)), study("b", "p"), study("c", "q"))
    assert "".join(image.caller.client for image in take(queue)) == "abaa"


def test_bulk_batches_are_short_only_while_interactive_entries_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("zfserve_server.batching.fair_queue.time", SimpleNamespace(monotonic=lambda: now[0]))
    queue = filled(*(study("a", "p") for _ in range(20)))
    assert len(take(queue)) == 8
    queue.add(Image(CallerIdentity("b")))
    assert [image.caller.client for image in take(queue)] == ["b"]
    assert len(take(queue)) == 3
    now[0] += 0.99
    assert len(take(queue)) == 3
    now[0] += 0.02
    assert len(take(queue)) == 6


def test_an_interactive_batch_is_not_filled_with_bulk_entries() -> None:
    bulk, interactive = [Image(CallerIdentity("a", BULK)) for _ in range(5)], [Image(CallerIdentity("b"))] * 2
    queue = filled(*bulk, *interactive)
    assert take(queue) == interactive
    assert take(queue) == bulk[:3]


def test_bulk_of_the_engine_that_serves_is_let_in_when_it_is_due() -> None:
    queue = filled(Image(CallerIdentity("a", BULK)), *(Image(CallerIdentity("b")) for _ in range(9)))
    assert "".join(image.caller.priority[0] for image in take(queue, 16)) == "iiiiiiibii"


def test_studies_get_an_eighth_of_the_entries_in_the_long_run() -> None:
    """The engine is never idle: interactive entries always wait. Bulk batches have up to three images."""
    queue, taken = FairQueue[Image](), Counter[Priority]()
    for _ in range(4):
        queue.add(study("a", "p"))
    for _ in range(4000):
        while sum(taken.values()) + len(queue) < sum(taken.values()) + 40:
            queue.add(Image(CallerIdentity("b")))
        batch = take(queue)
        for image in batch:
            taken[image.caller.priority] += 1
            if image.caller.priority is BULK:
                queue.add(study("a", "p"))
    assert 0.12 < taken[BULK] / sum(taken.values()) < 0.13


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("pq"), st.booleans()), max_size=60), st.data())
def test_every_entry_is_taken_once_and_a_batch_is_of_one_engine(
    entries: list[tuple[str, str, bool]], data: st.DataObject
) -> None:
    images = [study(client, plan) if bulk else Image(CallerIdentity(client)) for client, plan, bulk in entries]
    queue, taken = filled(*images), list[Image]()
    removed = data.draw(st.sets(st.sampled_from(images))) if images else set()
    for image in removed:
        assert queue.remove(image)
    while len(queue):
        batch = take(queue, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
        assert len({image.reading for image in batch}) == 1
        taken += batch
    assert queue.readings == 0
    assert Counter(map(id, taken)) == Counter(map(id, set(images) - removed))
    for client, plan in {(image.caller, image.reading) for image in taken}:
        own = [image for image in taken if (image.caller, image.reading) == (client, plan)]
        assert own == [image for image in images if image in own]
