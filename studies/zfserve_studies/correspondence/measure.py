"""Measures how alike the changes of several photos are (Zeiler & Fergus, section 4.3 of arXiv v3)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Change = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SignChange:
    """Holds how often the signs of two photos' changes differ.

    Attributes:
        mean: the mean over pairs of photos, in [0, 1]. Small values say that the part means the same in all photos.
        deviation: the standard deviation over pairs (with n - 1). None if there is one pair only.
        pairs: the number of pairs.
    """

    mean: float
    deviation: float | None
    pairs: int


def pair_distances(changes: Sequence[Change]) -> list[float]:
    """Returns the normalised Hamming distance between the signs of each pair of changes, in [0, 1].

    A sign is -1, 0 or 1, so two zeros agree, and a zero and a number differ.

    Args:
        changes: for each photo float32 (D,), the activations of the photo minus those of the masked photo.
    """
    signs = [np.sign(each) for each in changes]
    return [float(np.mean(one != other)) for one, other in combinations(signs, 2)]


def sign_change(draws: Sequence[Sequence[Change]]) -> SignChange:
    """Returns mean and deviation over the pairs of all draws. A named part has one draw, the control has several.

    Args:
        draws: for each draw the changes of all photos, at least two, each float32 (D,).
    """
    distances = [distance for changes in draws for distance in pair_distances(changes)]
    deviation = statistics.stdev(distances) if len(distances) > 1 else None
    return SignChange(statistics.fmean(distances), deviation, len(distances))
