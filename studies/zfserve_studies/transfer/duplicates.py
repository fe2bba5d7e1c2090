"""Finds near-duplicates by normalised correlation, as the paper did (section 4.3 of arXiv v1)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 32
"""Photos are compared as grey pictures of this side, in pixels."""

LEAST_CORRELATION = 0.97
"""Photos that correlate at least this much are near-duplicates. The paper does not state its limit."""

Thumbnails = npt.NDArray[np.float32]

_BLOCK = 1024


def thumbnails(photos: Sequence[Path], progress: Callable[[int, int | None], None]) -> Thumbnails:
    """Returns a normalised vector for each photo: float32 (N, SIDE * SIDE), with mean 0 and norm 1.

    A photo that cannot be read, or that has one colour, has zeros. It correlates with nothing.
    """
    vectors = np.zeros((len(photos), SIDE * SIDE), dtype=np.float32)
    for at, photo in enumerate(photos):
        progress(at, len(photos))
        try:
            with Image.open(photo) as opened:
                opened.draft("L", (SIDE * 4, SIDE * 4))
                grey = opened.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow raises all of these
            continue
        vectors[at] = normalised(np.asarray(grey, dtype=np.float32).ravel())
    return vectors


def normalised(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns values with mean 0 and norm 1, or zeros if all values are equal."""
    centred = values - values.mean()
    norm = float(np.linalg.norm(centred))
    return centred / np.float32(norm) if norm > 1e-3 else np.zeros_like(values)


def near_duplicates(one: Thumbnails, other: Thumbnails) -> list[tuple[int, int, float]]:
    """Returns the rows of `one` and `other` that correlate at least `LEAST_CORRELATION`, with the correlation.

    Args:
        one: float32 (N, D), as `thumbnails` returns them.
        other: float32 (M, D). If it is `one` itself, each pair comes once, the smaller row first.
    """
    found = []
    for start in range(0, len(one), _BLOCK):
        correlations = one[start : start + _BLOCK] @ other.T
        for row, column in zip(*np.nonzero(correlations >= LEAST_CORRELATION), strict=True):
            if other is not one or start + row < column:
                found.append((int(start + row), int(column), float(correlations[row, column])))
    return found
