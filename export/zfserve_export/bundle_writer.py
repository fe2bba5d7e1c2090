"""This module writes a bundle to disk, whole or not at all. `exporter` calls it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zfserve_runtime.bundle import MANIFEST, BundleError, Manifest, file_digest


@contextmanager
def bundle_draft(target: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `target` to write a bundle's files into.

    `publish` moves it to `target`. If an error or an interrupt ends the block before that, the folder is removed, and
    so are the parent folders that were made for it.

    Raises:
        BundleError: `target` exists, or its folder cannot be written.
    """
    try:
        exists = target.exists()
    except OSError as error:
        raise BundleError(f"{target.parent} cannot be read: {error.strerror}; choose another --output") from error
    if exists:
        raise BundleError(f"{target} exists, and a bundle is never overwritten; choose another --version")
    made = [folder for folder in target.parents if not folder.exists()]
    # Readers ignore names with a leading dot. The process id keeps two exports apart.
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        draft.mkdir(parents=True)
        yield draft
    except OSError as error:
        raise BundleError(
            f"{target.parent} cannot be written: {error.strerror or error}; choose another --output, or make room there"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def publish(draft: Path, target: Path, manifest: Manifest) -> None:
    """Writes the manifest, with the digest of every file of the draft, and renames the draft to `target`.

    Raises:
        BundleError: another process has written `target` meanwhile.
    """
    files = sorted(file for file in draft.rglob("*") if file.is_file())
    manifest = manifest.model_copy(
        update={"files": {file.relative_to(draft).as_posix(): file_digest(file) for file in files}}
    )
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for file in files:
        # Some libraries ignore the umask and make files that only their owner can read. The worker may run as another
        # user.
        file.chmod((draft / MANIFEST).stat().st_mode)
    try:
        draft.rename(target)
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror}; run the export again") from error


def next_version(folder: Path) -> str:
    """Returns the highest whole number among the versions in a model's folder, plus one, or "1" if there is none."""
    numbers = [int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal()]
    return str(max(numbers, default=0) + 1)
