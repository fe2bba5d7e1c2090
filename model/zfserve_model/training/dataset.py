"""This module decodes a folder of photos, one sub-folder per class, into one file of uint8 pixels.

`zfserve train` calls it. Decoding costs more than augmenting, so each photo is decoded and resized only once, into a
memory-mapped file that the operating system pages in when needed.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from zfserve_photos.files import list_photo_files

from zfserve_model.networks import INPUT_SIZE


class DatasetError(ValueError):
    """The folder cannot be used for training. The message says what to change."""


@dataclass(frozen=True)
class PhotoFolder:
    """Lists the photos of one split.

    Attributes:
        class_ids: the names of the sub-folders, sorted.
        paths: the N photos, by class, and sorted within each class.
        labels: the index of each photo's class in `class_ids`, int64 (N,).
    """

    class_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]

    def fingerprint(self) -> str:
        """Returns 16 hex digits that change with the names, sizes and dates of the photos."""
        stats = ((path, path.stat()) for path in self.paths)
        return _digest((path.resolve(), status.st_size, status.st_mtime_ns) for path, status in stats)

    def listing(self) -> str:
        """Returns 16 hex digits that change with the photos' names within their classes and with their sizes in bytes.

        They do not change when the folder moves.
        """
        return _digest((f"{path.parent.name}/{path.name}", path.stat().st_size) for path in self.paths)

    def counts(self) -> dict[str, int]:
        """Returns the number of photos by class id."""
        numbers = np.bincount(self.labels, minlength=len(self.class_ids))
        return {class_id: int(number) for class_id, number in zip(self.class_ids, numbers, strict=True)}


@dataclass(frozen=True)
class Split:
    """Holds decoded photos, uint8 (N, 224, 224, 3), and their labels, int64 (N,)."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def _digest(photos: Iterable[tuple[str | Path, *tuple[int, ...]]]) -> str:
    """Returns 16 hex digits of a hash over a name and some numbers of each photo."""
    digest = hashlib.sha256()
    for name, *numbers in photos:
        digest.update(os.fsencode(name) + b"".join(f"\0{number}".encode() for number in numbers) + b"\0")
    return digest.hexdigest()[:16]


_DECODER_VERSION = 2
"""The version of `decode_photo`, which is part of the cache's name. Increase it when the function makes other pixels
from the same file."""


def list_splits(folder: Path) -> tuple[PhotoFolder, PhotoFolder]:
    """Lists the training photos, `folder/train/<class>/`, and the validation photos, `folder/val/<class>/`.

    Raises:
        DatasetError: a split is unusable (see `list_photos`), there is only one class, or the two splits have different
            classes.
    """
    train, validation = list_photos(folder / "train"), list_photos(folder / "val")
    if differing := sorted(set(train.class_ids) ^ set(validation.class_ids)):
        raise DatasetError(f"train/ and val/ in {folder} must hold the same classes; they differ in {differing}")
    if len(train.class_ids) < 2:
        raise DatasetError(f"{folder / 'train'} holds a single class; there is nothing to tell apart")
    return train, validation


def list_photos(folder: Path) -> PhotoFolder:
    """Lists the photos of `folder/<class>/`.

    Raises:
        DatasetError: the folder does not exist, has no class folders, or has a class without photos.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; give one that holds a sub-folder of photos per class")
    class_ids = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if not class_ids:
        raise DatasetError(f"{folder} holds no class folders; put each class's photos in a sub-folder of its own")
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_id in enumerate(class_ids):
        photos = list_photo_files(folder / class_id, recursive=False)
        if not photos:
            raise DatasetError(f"class folder {class_id!r} in {folder} holds no photos")
        paths += photos
        labels += [label] * len(photos)
    return PhotoFolder(class_ids, tuple(paths), np.asarray(labels, dtype=np.int64))


def decode_photo(path: Path) -> npt.NDArray[np.uint8]:
    """Decodes one photo and squashes it to uint8 (224, 224, 3), RGB, upright. The server decodes in the same way.

    Raises:
        DatasetError: the file is not a readable image, or has 32 bits a sample.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = _to_rgb(_upright(image))
    except Exception as error:  # Pillow raises many kinds of errors for damaged files
        raise DatasetError(f"{path} cannot be read as an image; remove or replace it") from error
    if upright is None:
        raise DatasetError(f"{path} has 32-bit samples; convert it to 8 or 16 bits a channel")
    if upright.size != (INPUT_SIZE, INPUT_SIZE):
        upright = upright.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(upright)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a picture with broken metadata is still readable
        return image


def _to_rgb(image: Image.Image) -> Image.Image | None:
    """Converts to mode RGB. Transparent pixels get a white background, and 16-bit samples keep their upper 8 bits.

    Returns None if samples have 32 bits.
    """
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        opaque = samples != image.info["transparency"] if "transparency" in image.info else None
        image = Image.fromarray((samples >> 8).astype(np.uint8))
        if opaque is not None:
            image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    if image.mode in ("I", "F"):
        return None
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(rgba, mask=rgba)
    return page


def decode_photos(
    photos: PhotoFolder, cache_dir: Path, advance: Callable[[int], None] = lambda count: None
) -> npt.NDArray[np.uint8]:
    """Returns all photos as one read-only memory-mapped array, uint8 (N, 224, 224, 3).

    The file in `cache_dir` is named after the fingerprint of the photos, and is written only once. `advance` is called
    with the number of photos that were decoded since its last call.

    Raises:
        DatasetError: a file is not a readable image.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    file = cache_dir / f"pixels-{photos.fingerprint()}.v{_DECODER_VERSION}.u8"
    shape = (len(photos.paths), INPUT_SIZE, INPUT_SIZE, 3)
    if not file.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        for left in cache_dir.glob("pixels-*.partial"):  # a process that was killed left it behind
            left.unlink(missing_ok=True)
        partial = file.with_suffix(".partial")
        try:
            with partial.open("wb") as opened:  # a full disk raises here; in a memory map it would kill the process
                os.posix_fallocate(opened.fileno(), 0, math.prod(shape))
            pixels = np.memmap(partial, dtype=np.uint8, mode="r+", shape=shape)
            with ThreadPoolExecutor() as pool:
                for index, decoded in enumerate(_map_bounded(pool, photos.paths)):
                    pixels[index] = decoded
                    advance(1)
            pixels.flush()
            partial.rename(file)
        finally:
            partial.unlink(missing_ok=True)
    return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)


def _map_bounded(pool: ThreadPoolExecutor, paths: tuple[Path, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    """Decodes photos in order, like `pool.map`, but keeps at most 256 decoded photos in memory."""
    rest = iter(paths)
    while batch := tuple(islice(rest, 256)):
        yield from pool.map(decode_photo, batch)
