"""Tests the numbers that a plan and its values compute."""

import numpy as np
from zfserve_engines.readings.plan import MAX_READ_BYTES, Reading, ReadingPlan, ReadValues, Replacement

VGG_MAPS = Reading("conv1", 64, 224, 224, "maps")


def test_a_batch_is_as_large_as_its_readings_allow() -> None:
    photo_bytes = 64 * 224 * 224 * 4
    assert ReadingPlan((VGG_MAPS,)).max_batch_size(32) == MAX_READ_BYTES // photo_bytes == 5
    assert ReadingPlan((VGG_MAPS,) * 10).max_batch_size(32) == 1
    small = Reading("conv5", 256, 13, 13, "strongest")
    assert ReadingPlan((small,)).max_batch_size(32) == ReadingPlan().max_batch_size(32) == 32


def test_photos_without_a_replacement_keep_their_maps() -> None:
    one = Replacement(np.array([[0, 1]], np.float32), np.array([[7, 0]], np.float32))
    batch = Replacement.of_batch([None, one, None], 2)
    assert batch.keep.tolist() == [[1, 1], [0, 1], [1, 1]]
    assert batch.values.tolist() == [[0, 0], [7, 0], [0, 0]]
    assert batch.keep.dtype == batch.values.dtype == np.float32


def test_values_of_one_photo_and_whether_they_are_finite() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2)
    values[1, 0, 0, 0] = np.nan
    values[2] = 3e38  # the sum overflows
    read = ReadValues(values)
    assert read.of_photo(0).values.tolist() == [[[0, 1]], [[2, 3]]]
    assert read.of_photo(0).rows is None
    assert read.is_finite() == [True, False, True]
    strongest = ReadValues(np.ones((1, 2), np.float32), np.array([[3, 4]]), np.array([[5, 6]])).of_photo(0)
    assert strongest.rows is not None
    assert strongest.columns is not None
    assert (strongest.rows.tolist(), strongest.columns.tolist()) == ([3, 4], [5, 6])
