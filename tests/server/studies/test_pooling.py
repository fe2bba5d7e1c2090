"""Pooling to a grid gives what torch's AdaptiveAvgPool2d gives."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import AdaptiveAvgPool2d
from zfserve_server.studies.pooling import pool_to_grid


def test_neighbouring_cells_share_a_unit_where_the_grid_does_not_divide_the_map() -> None:
    maps = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], np.float32)
    assert pool_to_grid(maps, 2, 2).tolist() == [[[3, 4], [6, 7]]]  # the mean of (1, 2, 4, 5) is 3
    assert pool_to_grid(maps, 1, 3).tolist() == [[[4, 5, 6]]]
    assert pool_to_grid(maps, 3, 3).tolist() == maps.tolist()


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_equals_torch(height: int, width: int, data: st.DataObject) -> None:
    grid = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    maps = np.random.default_rng(height * width).standard_normal((3, height, width)).astype(np.float32)
    expected = AdaptiveAvgPool2d(grid)(torch.from_numpy(maps)).numpy()
    pooled = pool_to_grid(maps, *grid)
    assert pooled.dtype == np.float32
    assert pooled.flags.c_contiguous
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-6)
