"""Photos from what a user types: files, folders and globs."""

import glob
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def find_photos(names: Sequence[str]) -> list[Path]:
    """The photos named, each once: a file as it is, a folder's photos at any depth, and whatever a glob matches.

    Raises:
        FileNotFoundError: a name that matches nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        matches = _matches(name)
        if not matches:
            raise FileNotFoundError(f"{name}: no such photo, nor a folder with any")
        found.update(dict.fromkeys(matches))
    return list(found)


def _matches(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if path.exists():
        return [path]
    # For shells that leave globs alone, and for quoted ones; `**` reaches into folders.
    matches = glob.glob(name, recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
    return sorted(file for file in map(Path, matches) if file.is_file())
