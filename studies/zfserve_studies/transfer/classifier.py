"""Trains a linear classifier on features, and measures its accuracy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import SGDClassifier
from sklearn.svm import LinearSVC

MOST_VALUES = 2**24
"""A training part with more values than this (64 MiB) is learned by a streaming solver, which needs no second copy of
it. A dual solver learns all others: it is exact, and fast where photos are few."""

COST = 10.0
"""The weight of the errors of a linear support vector machine, called C. The paper does not state it."""

EPOCHS = 30
_UNSETTLED_EPOCHS = 5
_MINI_BATCH = 64

Matrix = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def class_accuracies(
    train: Matrix, train_labels: Labels, test: Matrix, test_labels: Labels, seed: int
) -> dict[int, float]:
    """Trains a linear support vector machine, and returns the accuracy of each class that has photos to test.

    Each feature gets mean 0 and deviation 1 over the training part, and is divided by the root of the number of
    features, so that one cost suits layers of any width. Features that do not vary become 0.

    Args:
        train: float32 (N, D), the features to learn from.
        train_labels: int64 (N,), at least two different ones.
        test: float32 (M, D).
        test_labels: int64 (M,).
        seed: the seed of the solver.
    """
    mean, scale = scaling(train)
    test_part = (test - mean) * scale
    if train.size <= MOST_VALUES:
        dual = LinearSVC(C=COST, loss="hinge", max_iter=20_000, random_state=seed)
        dual.fit((train - mean) * scale, train_labels)
        answers = dual.predict(test_part)
    else:
        answers = _streamed(train, train_labels, mean, scale, seed).predict(test_part)
    return {int(label): float(np.mean(answers[test_labels == label] == label)) for label in np.unique(test_labels)}


def scaling(train: Matrix) -> tuple[Matrix, Matrix]:
    """Returns what is subtracted from each feature and what it is multiplied by, float32 (D,) each."""
    deviation = train.std(axis=0)
    varies = deviation > 1e-6
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0) / np.sqrt(train.shape[1])
    return train.mean(axis=0), scale.astype(np.float32)


def mean_of_classes(accuracies: Sequence[float]) -> float:
    """Returns the mean of the accuracies of all classes, so that each class counts the same."""
    return float(np.mean(accuracies))


def _streamed(train: Matrix, labels: Labels, mean: Matrix, scale: Matrix, seed: int) -> SGDClassifier:
    """Learns the same loss as the dual solver from a few photos at a time, which alone are standardised in memory."""
    # The first epochs move far, so they do not enter the average.
    averaged_from = _UNSETTLED_EPOCHS * len(train)
    model = SGDClassifier(loss="hinge", alpha=1 / (COST * len(train)), average=averaged_from, random_state=seed)
    generator, classes = np.random.default_rng(seed), np.unique(labels)
    for _ in range(EPOCHS):
        order = generator.permutation(len(train))
        for start in range(0, len(order), _MINI_BATCH):
            rows = order[start : start + _MINI_BATCH]
            model.partial_fit((train[rows] - mean) * scale, labels[rows], classes)
    return model
