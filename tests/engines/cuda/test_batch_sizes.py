"""Tests the choice of the batch sizes that are prepared, and of the profile for each size."""

from hypothesis import given, settings
from hypothesis import strategies as st
from zfserve_engines.cuda.batch_sizes import BatchProfile, choose_profile, plan_batch_sizes, plan_profiles

PROFILES = plan_profiles((1, 8, 32))


def test_the_profile_is_the_one_tuned_for_the_nearest_size() -> None:
    assert [choose_profile(PROFILES, size) for size in (1, 2, 8, 9, 32)] == [0, 1, 1, 2, 2]
    overlapping = (BatchProfile(1, 32), BatchProfile(1, 8), BatchProfile(1, 1))
    assert [choose_profile(overlapping, size) for size in (1, 2, 8, 9)] == [2, 1, 1, 0]


def test_sizes_that_are_prepared() -> None:
    assert plan_batch_sizes(PROFILES, 32) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    assert plan_batch_sizes(PROFILES, 5) == (1, 2, 3, 4, 5)
    assert plan_batch_sizes(PROFILES, 100) == plan_batch_sizes(PROFILES, 32), "an engine takes what it was built for"
    assert plan_batch_sizes(plan_profiles((5, 20)), 20) == (1, 2, 3, 4, 5, 6, 8, 12, 16, 20)


@settings(max_examples=50)
@given(st.sets(st.integers(1, 200), min_size=1, max_size=4), st.integers(1, 300), st.data())
def test_padding_is_at_most_a_third_of_a_batch_and_keeps_its_profile(
    batches: set[int], most: int, data: st.DataObject
) -> None:
    profiles = plan_profiles(sorted(batches))
    sizes = plan_batch_sizes(profiles, most)
    assert sizes[-1] == min(most, max(batches))
    count = data.draw(st.integers(1, sizes[-1]))
    filled = min(size for size in sizes if size >= count)
    assert filled - count <= filled / 3
    assert choose_profile(profiles, filled) == choose_profile(profiles, count)
