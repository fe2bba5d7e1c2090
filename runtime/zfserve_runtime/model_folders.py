"""Versions of models on disk: found in the folders that server and worker are given, and told apart from those before.

Folders are looked at, again and again: inotify hears nothing of what another machine does on a network volume. A look
reads a manifest only when that has changed, and lists the rest, so it costs a few system calls a version.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from zfserve_runtime.bundle import MANIFEST, BundleError, Manifest, read_manifest, version_key

_log = logging.getLogger(__name__)

Stamp = tuple[str, int, int, int, int]
"""Of a file: its name, size, times of modification and of change (ns), which a new owner or mode is, and inode."""

Listing = tuple[Stamp, ...]
"""Of every file in a folder."""


@dataclass(frozen=True)
class FoundVersion:
    """A folder with a manifest. Whether the bundle is whole, only loading it can tell.

    Attributes:
        name, version: as the manifest says; where it cannot be read, the name of its neighbours and the folder's own.
        fingerprint: of the weights; empty where the manifest cannot be read.
        content: a digest of the manifest, and so of all the files whose digests it holds: equal is the same bundle.
        files: while these are equal, nobody has touched the folder.
        pinned: its own folder was asked for, not that of its model.
    """

    folder: Path
    name: str
    version: str
    fingerprint: str
    content: str
    files: Listing
    pinned: bool


class _Read(NamedTuple):
    """A manifest as it was at `stamp`; None where it cannot be used."""

    stamp: Stamp
    content: str
    manifest: Manifest | None


class ModelFolders:
    """Looks at folders; each is that of a bundle, of a model (its versions below it) or of several models.

    What cannot be looked at for the moment is taken to be as it was before, and told of in the log, once.

    Not for several threads at once.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._read: dict[Path, _Read] = {}
        self._before: dict[Path, FoundVersion] = {}  # by its folder
        self._held: set[Path] = set()  # those of `folders` that ever held something
        self._unseen: dict[Path, str] = {}  # and why, in the last look

    def look(self) -> list[FoundVersion]:
        """What lies there: in the order of the folders, by name, the newest version first. Blocks.

        A folder without a manifest is passed over, as one that is still being copied; so are hidden ones.

        Raises:
            BundleError: one of the folders holds nothing and never did, or all of them hold nothing.
        """
        told, self._unseen = self._unseen, {}
        found: list[FoundVersion] = []
        for folder in self._folders:
            here = [*self._versions(folder)]
            if here:
                self._held.add(folder)
            elif folder not in self._held:
                if folder in self._unseen:
                    raise BundleError(f"the folder {folder} cannot be read: {self._unseen[folder]}")
                raise BundleError(f"there is no bundle at {folder}; `zfserve export` writes one")
            else:
                self._unseen.setdefault(folder, "there is no bundle any more")
            found += sorted(sorted(here, key=_newness, reverse=True), key=lambda version: version.name)
        for folder, why in self._unseen.items():
            if told.get(folder) != why:
                _log.warning("a folder cannot be looked at", extra={"folder": str(folder), "reason": why})
        if not found:
            raise BundleError(f"there is no bundle at {', '.join(map(str, self._folders))} any more")
        self._before = {version.folder: version for version in found}
        self._read = {folder: read for folder, read in self._read.items() if folder in self._before}
        return found

    def _versions(self, folder: Path) -> Iterator[FoundVersion]:
        if self._is_bundle(folder):
            yield from self._bundles([folder], folder.parent.name, pinned=True)
            return
        inside = self._folders_in(folder)
        bundles = [entry for entry in inside if self._is_bundle(entry)]
        if bundles:
            yield from self._bundles(bundles, folder.name, pinned=False)
            return
        for model in inside:
            bundles = [entry for entry in self._folders_in(model) if self._is_bundle(entry)]
            yield from self._bundles(bundles, model.name, pinned=False)

    def _is_bundle(self, folder: Path) -> bool:
        try:
            return stat.S_ISREG((folder / MANIFEST).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._miss(folder, error)
            return folder in self._before

    def _folders_in(self, folder: Path) -> list[Path]:
        """The visible ones, by name."""
        try:
            with os.scandir(folder) as entries:
                return sorted(folder / entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._miss(folder, error)
            return sorted(known for known in self._before if known.parent == folder)

    def _miss(self, folder: Path, error: OSError) -> None:
        self._unseen[folder] = error.strerror or type(error).__name__

    def _bundles(self, folders: Sequence[Path], fallback: str, pinned: bool) -> Iterator[FoundVersion]:
        """Those of one model, whose manifests may be unreadable."""
        listed = []
        for folder in folders:
            try:
                files = _list_files(folder)
            except OSError as error:
                self._miss(folder, error)
                if folder in self._before:
                    yield self._before[folder]
                continue
            stamp = next((entry for entry in files if entry[0] == MANIFEST), None)
            if stamp is not None:  # else it was removed just now
                listed.append((folder, files, self._manifest(folder, stamp)))
        name = next((read.manifest.name for _, _, read in listed if read.manifest is not None), fallback)
        for folder, files, read in listed:
            manifest = read.manifest
            yield FoundVersion(
                folder,
                name if manifest is None else manifest.name,
                folder.name if manifest is None else manifest.version,
                "" if manifest is None else manifest.fingerprint,
                read.content,
                files,
                pinned,
            )

    def _manifest(self, folder: Path, stamp: Stamp) -> _Read:
        known = self._read.get(folder)
        if known is None or known.stamp != stamp or known.manifest is None:
            known = self._read[folder] = _Read(stamp, *_read(folder / MANIFEST))
        return known


def by_model(found: Sequence[FoundVersion]) -> dict[str, list[FoundVersion]]:
    """The versions of every model, the newest first; the models in the order in which they were found."""
    names = [*dict.fromkeys(version.name for version in found)]
    newest_first = sorted(found, key=_newness, reverse=True)
    ordered = sorted(newest_first, key=lambda version: names.index(version.name))
    return {name: [*versions] for name, versions in groupby(ordered, key=lambda version: version.name)}


def _newness(found: FoundVersion) -> tuple[tuple[bool, int, str], ...]:
    return version_key(found.version)


def _read(file: Path) -> tuple[str, Manifest | None]:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest(), read_manifest(file)
    except (OSError, BundleError, RecursionError):  # whoever loads it is told why
        return "", None


def _list_files(folder: Path) -> Listing:
    """Of the files in the folder itself, links followed; none where it is gone. Raises OSError where nobody can say."""
    listed = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed just now, or a link to nowhere
                if entry.is_file():
                    status = entry.stat()
                    times = status.st_mtime_ns, status.st_ctime_ns
                    listed.append((entry.name, status.st_size, *times, status.st_ino))
    return tuple(sorted(listed))
