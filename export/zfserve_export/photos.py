"""This module lists and reads photos: labelled photos for accuracy, and others for calibration and parity.

`zfserve evaluate` and `zfserve export` call it. `zfserve_engines.images.input_image` decodes them, as in the server.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from zfserve_engines.images.input_image import ImageLimits, decode_image
from zfserve_model.preprocessing import Preprocessing
from zfserve_photos.files import PHOTO_SUFFIXES, list_photo_files
from zfserve_runtime.bundle import InputSpec
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.errors import InvalidInput


def input_spec(preprocessing: Preprocessing) -> InputSpec:
    """Returns the input specification for a preprocessing. A bundle has it in its manifest."""
    return InputSpec(
        height=preprocessing.height,
        width=preprocessing.width,
        resize=preprocessing.resize,
        shorter_side=preprocessing.shorter_side,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
    )


class PhotoError(ValueError):
    """The photos cannot be used. The message names the folder or the file, and says what to change."""


@dataclass(frozen=True, eq=False)
class LabelledPhotos:
    """Lists photos of known class.

    Attributes:
        class_ids: the model's class ids, in the order of its outputs.
        paths: the N photos, by class, and sorted within each class.
        labels: the index of each photo's class in `class_ids`, int64 (N,).
    """

    class_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]


def list_labelled_photos(folder: Path, class_ids: Sequence[str]) -> LabelledPhotos:
    """Lists the photos in `folder/<class id>/`, or in `folder/val/<class id>/` if `folder/val` exists.

    Not every class of the model needs a folder, so a part of a data set can be measured.

    Raises:
        PhotoError: the folder does not exist, has no class folders, has a folder of an unknown class, or has a class
            folder without photos.
    """
    if (folder / "val").is_dir():
        folder = folder / "val"
    if not folder.is_dir():
        raise PhotoError(f"there is no folder {folder}; give one that holds a sub-folder of photos per class id")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise PhotoError(f"{folder} holds no class folders; put each class's photos in a sub-folder named by its id")
    known = {class_id: index for index, class_id in enumerate(class_ids)}
    unknown = [name for name in found if name not in known]
    if unknown:
        raise PhotoError(
            f"{folder} has folders for {_enumerated(unknown)}, but the model has no such class; "
            f"it knows {_enumerated(class_ids)}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for class_id in found:
        photos = list_photos(folder / class_id)
        paths += photos
        labels += [known[class_id]] * len(photos)
    return LabelledPhotos(tuple(class_ids), tuple(paths), np.asarray(labels, dtype=np.int64))


def list_photos(folder: Path) -> tuple[Path, ...]:
    """Returns the photos in `folder` and below it, sorted by path (`zfserve_photos.files.list_photo_files`).

    Raises:
        PhotoError: the folder does not exist, or has no photos.
    """
    if not folder.is_dir():
        raise PhotoError(f"there is no folder {folder}; give one that holds photos")
    photos = tuple(list_photo_files(folder))
    if not photos:
        raise PhotoError(f"{folder} holds no photos ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return photos


def read_photo(path: Path, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Reads one photo as the network's input, uint8 (H, W, 3).

    Raises:
        PhotoError: the photo cannot be read or decoded.
    """
    try:
        return decode_image(path.read_bytes(), spec, ImageLimits()).pixels
    except OSError as error:
        raise PhotoError(f"{path} cannot be read: {error.strerror}") from error
    except InvalidInput as error:
        raise PhotoError(f"{path}: {error.message}") from error


def read_batches(paths: Sequence[Path], spec: InputSpec, batch_size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields photos in order, in batches, uint8 (N, H, W, 3) with N at most `batch_size`.

    The next batch is decoded while the caller works on this one.

    Raises:
        PhotoError: a photo cannot be read or decoded.
    """
    with ThreadPoolExecutor(available_cpus()) as pool:
        rest = iter(paths)
        ahead: list[Future[npt.NDArray[np.uint8]]] = []
        try:
            while True:
                ahead += [pool.submit(read_photo, path, spec) for path in islice(rest, 2 * batch_size - len(ahead))]
                if not ahead:
                    return
                batch, ahead = ahead[:batch_size], ahead[batch_size:]
                yield np.stack([photo.result() for photo in batch])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _enumerated(names: Sequence[str], most: int = 10) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
