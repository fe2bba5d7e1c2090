"""This module scores a network on photos of known class.

`zfserve evaluate` calls it, and `zfserve export` calls it for the accuracy figures of the manifest. The arithmetic is
plain numpy. The caller passes the function that runs the network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from zfserve_engines.contract import Engine
from zfserve_runtime.bundle import InputSpec

from zfserve_export.photos import LabelledPhotos, read_batches

Classifier = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Turns pixels, uint8 (N, H, W, 3), into probabilities, float32 (N, K)."""


@dataclass(frozen=True)
class Confusion:
    """Counts the photos of class `true` that were classified as `predicted`. Both are class indices."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False)
class Score:
    """Holds the score of a network. Shares are in [0, 1].

    Attributes:
        count: the number of photos N.
        top1, top5: the share of photos whose class was the most probable, or among the five most probable.
        confusion: the number of photos by true class (row) and most probable class (column), int64 (K, K).
    """

    count: int
    top1: float
    top5: float
    confusion: npt.NDArray[np.int64]

    def class_counts(self) -> npt.NDArray[np.int64]:
        """Returns the number of photos of each class, int64 (K,)."""
        counts: npt.NDArray[np.int64] = self.confusion.sum(axis=1)
        return counts

    def class_accuracy(self) -> npt.NDArray[np.float64]:
        """Returns the accuracy of each class, float64 (K,), in [0, 1]. It is NaN for a class without photos."""
        counts = self.class_counts()
        accuracy = np.full(len(counts), np.nan)
        np.divide(self.confusion.diagonal(), counts, out=accuracy, where=counts > 0)
        return accuracy

    def worst_confusions(self, most: int) -> list[Confusion]:
        """Returns at most `most` pairs of confused classes, the most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [Confusion(int(t), int(p), int(wrong[t, p])) for t, p in pairs if wrong[t, p]]


def score(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Score:
    """Scores `probabilities`, float32 (N, K), against `labels`, int64 (N,). In a tie the first class ranks higher."""
    return _score_ranks(*_rank(probabilities, labels), labels, classes=probabilities.shape[1])


def evaluate(
    classify: Classifier,
    spec: InputSpec,
    photos: LabelledPhotos,
    batch_size: int = 16,
    on_batch: Callable[[int], object] = lambda photos: None,
) -> Score:
    """Classifies `photos` and scores the answers. `on_batch` is called after each batch with its number of photos.

    Raises:
        PhotoError: a photo cannot be read or decoded.
    """
    ranks: list[npt.NDArray[np.int64]] = []
    best: list[npt.NDArray[np.int64]] = []
    first = 0
    for pixels in read_batches(photos.paths, spec, batch_size):
        batch_ranks, batch_best = _rank(classify(pixels), photos.labels[first : first + len(pixels)])
        ranks.append(batch_ranks)
        best.append(batch_best)
        first += len(pixels)
        on_batch(len(pixels))
    return _score_ranks(np.concatenate(ranks), np.concatenate(best), photos.labels, len(photos.class_ids))


def evaluate_engine(
    engine: Engine,
    spec: InputSpec,
    photos: LabelledPhotos,
    on_batch: Callable[[int], object] = lambda photos: None,
) -> Score:
    """Evaluates with an engine, in the largest batches that it takes. So the figures hold for the engine that serves.

    Raises:
        PhotoError: a photo cannot be read or decoded.
        EngineFailed: the engine failed.
    """
    return evaluate(lambda pixels: engine.run(pixels).probabilities, spec, photos, engine.info.max_batch_size, on_batch)


def _rank(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the number of classes that rank above the true class, and the best class. Both are int64 (N,)."""
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    later = np.arange(probabilities.shape[1]) > labels[:, None]
    # This counts the classes below the true one, so that a NaN ranks last and not first.
    below = (probabilities < true) | ((probabilities == true) & later)
    return probabilities.shape[1] - 1 - below.sum(axis=1), probabilities.argmax(axis=1)


def _score_ranks(
    ranks: npt.NDArray[np.int64], best: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], classes: int
) -> Score:
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, best), 1)
    return Score(len(labels), float((ranks < 1).mean()), float((ranks < 5).mean()), confusion)
