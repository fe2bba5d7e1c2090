"""Counts what the replacement of each group of maps does to the accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PhotoAnswer:
    """Holds the answers for one photo.

    Attributes:
        label: the class of the photo, as the index of its folder.
        right: for the untouched network, and then for each group alone, whether the most probable class is right.
        probabilities: the probability of the photo's class, in the same order.
    """

    label: int
    right: tuple[bool, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Effects:
    """Holds accuracies in [0, 1]. The first row is the untouched network, and then comes a row for each group.

    Attributes:
        photos: int64 (C,), the number of photos of each class.
        whole: float64 (1 + G,), the share of all photos whose most probable class is right.
        by_class: float64 (1 + G, C), the same for the photos of each class. NaN for a class without photos.
        probability: float64 (1 + G,), the mean probability of the photos' own classes.
    """

    photos: npt.NDArray[np.int64]
    whole: npt.NDArray[np.float64]
    by_class: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]

    def ranked(self) -> list[int]:
        """Returns the groups, the lowest accuracy first. Of equal ones the lowest probability comes first."""
        return [int(at) for at in np.lexsort((self.probability[1:], self.whole[1:]))]


def count_effects(answers: Sequence[PhotoAnswer], classes: int) -> Effects:
    """Returns the accuracies.

    Args:
        answers: the answers of all photos, at least one, each with as many groups.
        classes: the number of classes.
    """
    labels = np.array([each.label for each in answers])
    right = np.array([each.right for each in answers], dtype=np.float64)
    photos = np.bincount(labels, minlength=classes)
    by_class = np.full((right.shape[1], classes), np.nan)
    for at in np.flatnonzero(photos):
        by_class[:, at] = right[labels == at].mean(axis=0)
    probabilities = np.array([each.probabilities for each in answers], dtype=np.float64)
    return Effects(photos, right.mean(axis=0), by_class, probabilities.mean(axis=0))
