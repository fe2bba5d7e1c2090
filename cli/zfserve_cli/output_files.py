"""Names the files that a command writes for each of several photos. `zfserve explain` and the studies use it."""

from collections.abc import Sequence
from pathlib import Path

from zfserve_cli.picture_files import PICTURE_SUFFIXES, file_name_part


def output_files(
    photos: Sequence[Path], save: Path | None, words: Sequence[str], suffixes: Sequence[str] = PICTURE_SUFFIXES
) -> list[Path]:
    """Returns a file for each photo, and makes the folder of these files.

    Args:
        photos: the photos.
        save: what the user gave as --save: a file with one of `suffixes`, or a folder. None is the current folder.
        words: what the command does, such as "explained", and every choice that is not the default. Empty ones are
            left out. A file in a folder is named by the photo and these words, and has the first of `suffixes`.
        suffixes: the suffixes that a file may have, in small letters.

    Raises:
        ValueError: `save` is one file for several photos, or a file is the photo itself.
        OSError: the folder cannot be made.
    """
    if save is not None and save.suffix.lower() in suffixes and not save.is_dir():
        if len(photos) > 1:
            raise ValueError(f"--save {save} is one file, and there are {len(photos)} photos; name a folder")
        files = [save]
    else:
        files = [(save or Path()) / name for name in _names(photos, words, suffixes[0])]
    originals = {photo.resolve() for photo in photos}
    for file in files:
        if file.resolve() in originals:
            raise ValueError(f"the picture would replace the photo {file}; name another file or folder with --save")
        file.parent.mkdir(parents=True, exist_ok=True)
    return files


def one_picture(photos: Sequence[Path], save: Path) -> Path:
    """Returns the file of one picture of all photos, and makes its folder.

    Raises:
        ValueError: it has no suffix of a picture, or it is one of the photos.
        OSError: the folder cannot be made.
    """
    if save.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"--save {save} is no picture file; give it one of the suffixes {', '.join(PICTURE_SUFFIXES)}")
    if save.resolve() in {photo.resolve() for photo in photos}:
        raise ValueError(f"the picture would replace the photo {save}; name another file with --save")
    save.parent.mkdir(parents=True, exist_ok=True)
    return save


def _names(photos: Sequence[Path], words: Sequence[str], suffix: str) -> list[str]:
    """Returns a file name for each photo. Photos of one name from several folders get a number."""
    tail = "".join(f"-{file_name_part(word)}" for word in words if word)
    names: dict[str, None] = {}
    for photo in photos:
        name, number = f"{photo.stem}{tail}{suffix}", 2
        while name in names:
            name, number = f"{photo.stem}{tail}-{number}{suffix}", number + 1
        names[name] = None
    return [*names]
