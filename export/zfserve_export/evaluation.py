"""Scoring: how often a network is right about photos of known class.

Called by `zfserve evaluate`, and by `zfserve export` for the accuracy figures of the manifest. The arithmetic is plain
numpy; what runs the network is an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from zfserve_engines.contract import Engine
from zfserve_runtime.bundle import InputSpec

from zfserve_export.photos import LabelledPhotos, read_batches

Classifier = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""From `pixels`, uint8 (N, H, W, 3), to probabilities, float32 (N, K)."""


@dataclass(frozen=True)
class Confusion:
    """Photos of one class taken for another, by index."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False)
class Score:
    """How a network did. Shares are in [0, 1].

    Attributes:
        count: number of photos N.
        top1, top5: share of photos whose class was the most probable, or among the five most probable.
        confusion: int64 (K, K), photos by true class (row) and most probable class (column).
    """

    count: int
    top1: float
    top5: float
    confusion: npt.NDArray[np.int64]

    def class_counts(self) -> npt.NDArray[np.int64]:
        """Photos of each class, int64 (K,)."""
        counts: npt.NDArray[np.int64] = self.confusion.sum(axis=1)
        return counts

    def class_accuracy(self) -> npt.NDArray[np.float64]:
        """Share of each class's photos that were right, float64 (K,); NaN for a class without photos."""
        counts = self.class_counts()
        accuracy = np.full(len(counts), np.nan)
        np.divide(self.confusion.diagonal(), counts, out=accuracy, where=counts > 0)
        return accuracy

    def worst_confusions(self, most: int) -> list[Confusion]:
        """The pairs of classes confused most often, most often first; pairs never confused are left out."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        return [Confusion(int(t), int(p), int(wrong[t, p])) for t, p in pairs if wrong[t, p]]


def score(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Score:
    """Score `probabilities`, float32 (N, K), against `labels`, int64 (N,). Of equals, the first class ranks higher."""
    return _score_ranks(*_rank(probabilities, labels), labels, classes=probabilities.shape[1])


def evaluate(
    classify: Classifier,
    spec: InputSpec,
    photos: LabelledPhotos,
    batch_size: int = 16,
    on_batch: Callable[[int], object] = lambda photos: None,
) -> Score:
    """Classify `photos` and score the answers. `on_batch` hears of each batch's number of photos when it is done.

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
    """`evaluate` with an engine, in batches as large as it takes: what is measured is what serves.

    Raises:
        PhotoError: a photo cannot be read or decoded.
        EngineFailed: the runtime gave up.
    """
    return evaluate(lambda pixels: engine.run(pixels).probabilities, spec, photos, engine.info.max_batch_size, on_batch)


def _rank(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many classes rank above the true one, and the best class; both int64 (N,)."""
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    later = np.arange(probabilities.shape[1]) > labels[:, None]
    # Counted from below, so that a NaN ranks last instead of first.
    below = (probabilities < true) | ((probabilities == true) & later)
    return probabilities.shape[1] - 1 - below.sum(axis=1), probabilities.argmax(axis=1)


def _score_ranks(
    ranks: npt.NDArray[np.int64], best: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], classes: int
) -> Score:
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, best), 1)
    return Score(len(labels), float((ranks < 1).mean()), float((ranks < 5).mean()), confusion)
