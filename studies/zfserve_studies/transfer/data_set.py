"""Reads folders of photos by class, and draws the photos of each fold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from zfserve_photos.files import list_photo_files

Indices = npt.NDArray[np.int64]


class DataUnusable(Exception):
    """The photos cannot be used for this study. The message says why and what to do."""


@dataclass(frozen=True)
class DataSet:
    """Holds photos with their classes.

    Attributes:
        root: the folder, which has one folder for each class.
        classes: the names of the classes, sorted.
        photos: the photos, class by class, sorted by name.
        labels: int64 (N,), the class of each photo.
    """

    root: Path
    classes: tuple[str, ...]
    photos: tuple[Path, ...]
    labels: Indices


@dataclass(frozen=True)
class Fold:
    """Holds the photos of one fold, as indices of `DataSet.photos`.

    Attributes:
        train: for each class the photos that may be learned from. Fewer photos are the first ones of these.
        test: for each class the photos that are tested.
    """

    train: tuple[Indices, ...]
    test: tuple[Indices, ...]


def read_data_set(root: Path) -> DataSet:
    """Returns the photos in the folders of `root`. Folders without photos are no classes.

    Raises:
        DataUnusable: there are fewer than two classes.
    """
    folders = sorted(each for each in root.glob("*") if each.is_dir() and not each.name.startswith("."))
    photos = {folder.name: found for folder in folders if (found := list_photo_files(folder, recursive=False))}
    if len(photos) < 2:
        raise DataUnusable(f"{root} has {len(photos)} folders with photos; name a folder with a folder for each class")
    labels = np.repeat(np.arange(len(photos)), [len(found) for found in photos.values()])
    return DataSet(root, tuple(photos), tuple(each for found in photos.values() for each in found), labels)


def draw_folds(data: DataSet, folds: int, train: int, test: int, seed: int) -> list[Fold]:
    """Returns folds. Each draws its photos anew, without repetition within a class.

    Args:
        data: the photos.
        folds: the number of folds.
        train: the number of photos of each class to learn from.
        test: the largest number of photos of each class to test. A class may have fewer.
        seed: the seed. Equal seeds give equal folds.

    Raises:
        DataUnusable: a class has too few photos.
    """
    counts = np.bincount(data.labels)
    if counts.min() <= train:
        name = data.classes[int(counts.argmin())]
        raise DataUnusable(
            f"{name} has {counts.min()} photos, and {train} to learn from leave none to test; "
            f"add photos, or give --train with numbers below {counts.min()}"
        )
    drawn = []
    for fold in range(folds):
        generator = np.random.default_rng([seed, fold])
        orders = [generator.permutation(np.flatnonzero(data.labels == at)) for at in range(len(data.classes))]
        drawn.append(Fold(tuple(each[:train] for each in orders), tuple(each[train : train + test] for each in orders)))
    return drawn


def used_photos(folds: Sequence[Fold]) -> Indices:
    """Returns the indices of all photos that any fold uses, rising."""
    return np.unique(np.concatenate([part for fold in folds for part in (*fold.train, *fold.test)]))
