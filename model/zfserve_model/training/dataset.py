"""A folder of photos, one sub-folder per class, decoded once into one uint8 file.

Called by the training loop. Decoding costs more than augmenting, so every photo is decoded and resized a single
time into a memory-mapped file that the operating system pages in as needed.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from zfserve_model.networks import INPUT_SIZE

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


class DatasetError(ValueError):
    """The folder cannot be used for training; the message says what to change."""


@dataclass(frozen=True)
class PhotoFolder:
    """The photos of one split.

    Attributes:
        class_ids: sub-folder names, sorted; a photo's label is an index into them.
        paths: one per photo, sorted within its class.
        labels: int64 (N,), indices into `class_ids`.
    """

    class_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]


def list_photos(folder: Path) -> PhotoFolder:
    """The photos under `folder/<class>/`.

    Raises:
        DatasetError: no such folder, fewer than one class folder, or a class without photos.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; give one that holds a sub-folder of photos per class")
    class_ids = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not class_ids:
        raise DatasetError(f"{folder} holds no class folders; put each class's photos in a sub-folder of its own")
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_id in enumerate(class_ids):
        photos = sorted(path for path in (folder / class_id).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not photos:
            raise DatasetError(f"class folder {class_id!r} in {folder} holds no photos")
        paths += photos
        labels += [label] * len(photos)
    return PhotoFolder(class_ids, tuple(paths), np.asarray(labels, dtype=np.int64))


def decode_photo(path: Path) -> npt.NDArray[np.uint8]:
    """One photo squashed to uint8 (224, 224, 3), RGB, upright.

    Raises:
        DatasetError: the file is not a readable image.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} cannot be read as an image; remove or replace it") from error
    if upright.size != (INPUT_SIZE, INPUT_SIZE):
        upright = upright.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(upright)


def decode_photos(photos: PhotoFolder, cache_dir: Path) -> npt.NDArray[np.uint8]:
    """All photos as one read-only memory-mapped array, uint8 (N, 224, 224, 3).

    The file in `cache_dir` is named after the list of photos and their sizes, and is written only once.
    """
    digest = hashlib.sha256()
    for path in photos.paths:
        digest.update(f"{path}\0{path.stat().st_size}\0".encode())
    file = cache_dir / f"pixels-{digest.hexdigest()[:16]}.u8"
    shape = (len(photos.paths), INPUT_SIZE, INPUT_SIZE, 3)
    if not file.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".partial-{os.getpid()}")
        pixels = np.memmap(partial, dtype=np.uint8, mode="w+", shape=shape)
        with ThreadPoolExecutor() as pool:
            for index, decoded in enumerate(_map_bounded(pool, photos.paths)):
                pixels[index] = decoded
        pixels.flush()
        partial.rename(file)
    return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)


def _map_bounded(pool: ThreadPoolExecutor, paths: tuple[Path, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    """`pool.map`, but with at most 256 decoded photos in memory."""
    rest = iter(paths)
    while batch := tuple(islice(rest, 256)):
        yield from pool.map(decode_photo, batch)
