"""Measures accuracy for each layer, number of photos and fold."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from zfserve_studies.transfer.classifier import Matrix, class_accuracies, mean_of_classes
from zfserve_studies.transfer.data_set import DataUnusable, Fold, Indices


@dataclass(frozen=True)
class Point:
    """Holds the accuracy of one layer for one number of photos.

    Attributes:
        photos: the number of photos of each class that were learned from.
        folds: the mean of the per-class accuracies of each fold, in [0, 1].
    """

    photos: int
    folds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Returns the mean over folds."""
        return statistics.fmean(self.folds)

    @property
    def deviation(self) -> float | None:
        """Returns the standard deviation over folds (with n - 1), or None for one fold."""
        return statistics.stdev(self.folds) if len(self.folds) > 1 else None


def without_duplicates(folds: Sequence[Fold], pairs: Sequence[tuple[int, int]], foreign: frozenset[int]) -> list[Fold]:
    """Returns the folds without test photos that have a near-duplicate among the photos that are learned from.

    Args:
        folds: the folds.
        pairs: pairs of photos that are near-duplicates.
        foreign: photos that are near-duplicates of photos that the network itself has learned from.
    """
    cleaned = []
    for fold in folds:
        learned = {int(each) for part in fold.train for each in part}
        out = set(foreign)
        for one, other in pairs:
            if one in learned:
                out.add(other)
            if other in learned:
                out.add(one)
        test = tuple(part[[int(each) not in out for each in part]] if len(part) else part for part in fold.test)
        cleaned.append(Fold(fold.train, test))
    return cleaned


def readable_part(fold: Fold, readable: frozenset[int]) -> Fold:
    """Returns the fold without photos that cannot be read."""

    def kept(part: Indices) -> Indices:
        return np.array([each for each in part if int(each) in readable], dtype=np.int64)

    return Fold(tuple(map(kept, fold.train)), tuple(map(kept, fold.test)))


def measure_layer(
    features: Matrix,
    rows: dict[int, int],
    folds: Sequence[Fold],
    counts: Sequence[int],
    step: Callable[[], None],
) -> list[Point]:
    """Returns the accuracy of one layer for each number of photos.

    Args:
        features: float32 (N, D), the features of all photos that can be read.
        rows: the row of each photo.
        folds: the folds, with photos that can be read.
        counts: the numbers of photos of each class to learn from.
        step: is called after each classifier.

    Raises:
        DataUnusable: no photo is left to test, or too few classes to learn.
    """
    points = []
    for count in counts:
        accuracies = []
        for number, fold in enumerate(folds):
            train, train_labels = _part([each[:count] for each in fold.train], rows)
            test, test_labels = _part(fold.test, rows)
            if not len(test) or len(np.unique(train_labels)) < 2:
                raise DataUnusable("too few photos are left without near-duplicates and broken ones; add photos")
            found = class_accuracies(features[train], train_labels, features[test], test_labels, seed=number)
            accuracies.append(mean_of_classes([*found.values()]))
            step()
        points.append(Point(count, tuple(accuracies)))
    return points


def _part(parts: Sequence[Indices], rows: dict[int, int]) -> tuple[Indices, Indices]:
    """Returns rows of features and their classes."""
    chosen = [rows[int(each)] for part in parts for each in part]
    labels = [at for at, part in enumerate(parts) for _ in part]
    return np.array(chosen, dtype=np.int64), np.array(labels, dtype=np.int64)
