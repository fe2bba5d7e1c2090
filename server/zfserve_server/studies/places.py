"""Knows the geometry of a square that slides over an image. `occlusion` uses it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

COARSE_PLACES = 49
"""The largest number of places of the coarsest level."""


class Level(NamedTuple):
    """Holds the places of one level that no coarser level has.

    Attributes:
        spacing: once these places are known, the known places are this many rows and columns of the grid apart.
        places: int64 (N, 2), the row and the column of each place in the grid.
    """

    spacing: int
    places: npt.NDArray[np.int64]


def edges(side: int, size: int, stride: int) -> tuple[int, ...]:
    """Returns the first pixel of the square at each place along one side of the image.

    These are 0, `stride`, 2 * `stride` and so on. The last place lies at the edge, so its distance may be smaller.

    Args:
        side: the pixels of the side.
        size: the pixels of the square, 1 to `side`.
        stride: at least 1.
    """
    last = side - size
    regular = range(0, last, stride)
    return (*regular, last)


def count_places(height: int, width: int, size: int, stride: int) -> int:
    """Returns the number of places in an image without listing them."""
    down, across = (-(-(side - size) // stride) + 1 for side in (height, width))
    return down * across


def coarse_to_fine(rows: int, columns: int) -> Iterator[Level]:
    """Yields all places of a grid, each once, the coarsest level first.

    A level holds every `spacing`th row and column from 0 on. The spacing is a power of two and halves from one level to
    the next, down to 1. The coarsest level has at most `COARSE_PLACES` places.
    """
    spacing = 1
    while -(-rows // spacing) * -(-columns // spacing) > COARSE_PLACES:
        spacing *= 2
    coarsest = spacing
    while spacing:
        row, column = np.meshgrid(np.arange(0, rows, spacing), np.arange(0, columns, spacing), indexing="ij")
        known = (row % (2 * spacing) == 0) & (column % (2 * spacing) == 0)
        new = np.ones_like(known) if spacing == coarsest else ~known
        yield Level(spacing, np.stack([row[new], column[new]], axis=1))
        spacing //= 2
