"""Pools maps to a grid. `activations` uses it."""

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]


def pool_to_grid(maps: Values, height: int, width: int) -> Values:
    """Returns the mean of each map over each cell of a grid, as torch's AdaptiveAvgPool2d does.

    Cell i of n cells of an axis with N units covers the units from floor(i * N / n) up to, but not including,
    ceil((i + 1) * N / n). So neighbouring cells share a unit where N is no multiple of n.

    Args:
        maps: float32 (C, H, W).
        height, width: the number of rows and columns of the grid, at most H and W.

    Returns:
        float32 (C, height, width), C-contiguous.
    """
    rows = _cell_weights(maps.shape[1], height)
    columns = _cell_weights(maps.shape[2], width)
    return np.ascontiguousarray(rows @ maps @ columns.T)


def _cell_weights(units: int, cells: int) -> Values:
    """Returns the weight of each unit in the mean of each cell, float32 (cells, units)."""
    first = np.arange(cells)[:, None] * units // cells
    end = -(-(np.arange(cells)[:, None] + 1) * units // cells)
    place = np.arange(units)
    return np.where((first <= place) & (place < end), 1 / (end - first), 0).astype(np.float32)
