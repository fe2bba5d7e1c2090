"""Names and writes picture files. `zfserve project` and `zfserve explain` use it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""A picture can be written in the formats of these suffixes."""

_LONGEST_PART = 60
"""A part of a file name has at most this many characters. A name may have 255 bytes in most file systems."""


class NotSaved(Exception):
    """A picture cannot be written. The message says which one and why."""


@contextmanager
def saving() -> Iterator[None]:
    """Raises an OSError of its body as NotSaved.

    Raises:
        NotSaved: the body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise NotSaved(f"a picture cannot be written{where}: {error.strerror or error}") from error


def write_picture(picture: Image.Image, file: Path) -> None:
    """Writes a picture in one step, so that no half a picture is left behind. It replaces a file of the same name.

    Args:
        picture: the picture, in mode RGB.
        file: the file. Its suffix is one of `PICTURE_SUFFIXES`, in any case.

    Raises:
        NotSaved: the file cannot be written.
    """
    partial = file.with_name(f".{file.name}")
    try:
        with saving():
            picture.save(partial, Image.registered_extensions()[file.suffix.lower()], quality=92, optimize=True)
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def file_name_part(text: str) -> str:
    """Returns `text` as a part of a file name. Layer names and labels may have slashes, spaces and line breaks."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._")[:_LONGEST_PART] or "_"
