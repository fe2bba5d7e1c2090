"""Tests that the strongest units do not depend on the order of the photos or on how they are cut into shards."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from zfserve_studies.atlas.findings import dead_maps, near_duplicates
from zfserve_studies.atlas.strongest import COUNT, Strongest, Unit

MAPS = tuple(range(12))
Offer = tuple[int, tuple[float, ...]]

offers = st.lists(
    st.tuples(st.integers(0, 40), st.tuples(*[st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])] * len(MAPS))),
    max_size=60,
)


def found(photos: list[Offer], maps: tuple[int, ...] = MAPS) -> Strongest:
    """Returns the strongest units of photos. The first number is the content, so equal numbers are copies."""
    strongest = Strongest(maps)
    for number, values in photos:
        strongest.offer(f"{number}-{hash(values)}", f"d{number:03}", np.array(values, np.float32), MAPS, MAPS)
    return strongest


@given(offers, st.integers(1, 5))
def test_shards_merge_to_the_whole(photos: list[Offer], shards: int) -> None:
    merged = Strongest(MAPS)
    for shard in reversed(range(shards)):
        part = json.loads(json.dumps(found(photos[shard::shards]).document(), sort_keys=True))
        merged.merge(Strongest.of_document(part))
    assert merged.document() == found(photos).document() == found(photos[::-1]).document()
    assert merged.maps == MAPS


@given(offers)
def test_the_units_are_those_that_sorting_finds(photos: list[Offer]) -> None:
    strongest = found(photos)
    for index in MAPS:
        best: dict[str, Unit] = {}
        for number, values in photos:
            if (value := values[index]) > 0:
                unit = Unit(-value, f"d{number:03}", f"{number}-{hash(values)}", index, index, value)
                best[unit.digest] = min(unit, best.get(unit.digest, unit))
        assert strongest.units(index) == tuple(sorted(best.values())[:COUNT])


def test_ties_are_broken_by_the_digest_and_nan_is_left_out() -> None:
    strongest = Strongest([0])
    for digest, value in (("b", 1.0), ("c", 2.0), ("a", 1.0), ("n", float("nan"))):
        strongest.offer(digest, digest, np.array([value], np.float32), [3], [4])
    assert [unit.digest for unit in strongest.units(0)] == ["c", "a", "b"]


def test_dead_maps_and_near_duplicates() -> None:
    strongest = Strongest(range(4))
    for number in range(9):
        values = np.array([1000 + number, 0.5, 500 + number, 500], np.float32)
        strongest.offer(str(number), f"d{number}", values, [5, 0, 6, 9], [5, 0, 4, 5])
    assert dead_maps(strongest) == (1,), "0.5 is below a thousandth of 1008"
    assert near_duplicates(strongest, 90) == ((0, 2, 9),), "map 3 responds elsewhere"
    assert near_duplicates(strongest, 89) == ()
