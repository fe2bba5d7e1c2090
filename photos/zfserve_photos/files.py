"""Finds photo files on disk. Every command that reads photos uses this rule."""

import glob
from collections.abc import Sequence
from pathlib import Path

PHOTO_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""A photo file has one of these suffixes, in any case. `zfserve_engines.images.codec` decodes their formats."""


def list_photo_files(folder: Path, *, recursive: bool = True) -> list[Path]:
    """Returns the photos in `folder`, sorted by path.

    A photo is a file whose suffix is in `PHOTO_SUFFIXES`, in any case. Hidden files and folders inside `folder` are
    skipped. An example is `._photo.jpg`, which macOS leaves beside `photo.jpg` and which is not a picture.

    Args:
        folder: the folder to search. A folder that does not exist has no photos.
        recursive: search the folders below `folder` as well. Training searches one level only, because the level names
            the class.
    """
    entries = folder.glob("**/*" if recursive else "*")
    return sorted(entry for entry in entries if _is_photo(entry, folder))


def find_photos(names: Sequence[str]) -> list[Path]:
    """Returns the photos that a user names on the command line. Each photo comes once, in the order of the names.

    Args:
        names: files, folders and glob patterns. A file is taken whatever its suffix. A folder stands for its photos
            at any depth (`list_photo_files`). A pattern stands for all files that it matches.

    Raises:
        FileNotFoundError: a name matches nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        matches = _matches(name)
        if not matches:
            raise FileNotFoundError(f"{name}: there is no such photo, and no folder with photos")
        found.update(dict.fromkeys(matches))
    return list(found)


def _is_photo(file: Path, folder: Path) -> bool:
    if file.suffix.lower() not in PHOTO_SUFFIXES or not file.is_file():
        return False
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _matches(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return list_photo_files(path)
    if path.exists():
        return [path]
    # The user may quote a pattern, and some shells do not expand it. `**` reaches into folders.
    matches = glob.glob(name, recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
    return sorted(file for file in map(Path, matches) if file.is_file())
