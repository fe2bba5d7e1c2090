"""Finds the versions of models in the folders that server and worker are given, and tells which of them have changed.

Folders are scanned again and again, because inotify reports nothing of what another machine does on a network volume. A
scan reads a manifest only if it has changed, and lists the other files, so it costs a few system calls for a version.
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
"""The state of a file: its name, size in bytes, time of modification (ns), time of status change (ns) and inode. A new
owner or mode is a status change."""

Listing = tuple[Stamp, ...]
"""The stamps of all files in a folder, sorted by name."""


@dataclass(frozen=True)
class FoundVersion:
    """Describes a folder that has a manifest. Only loading the bundle can tell whether it is complete.

    Attributes:
        name: the model's name in the manifest. If the manifest cannot be read, the name of its neighbours.
        version: the version in the manifest. If the manifest cannot be read, the name of the folder.
        fingerprint: the digest of the weights, or "" if the manifest cannot be read.
        content: the sha256 of the manifest. It holds the digests of all other files: equal values mean equal bundles.
        files: the stamps of the files. They stay equal as long as nobody touches the folder.
        pinned: True if the version's own folder was given, and not the folder of its model.
    """

    folder: Path
    name: str
    version: str
    fingerprint: str
    content: str
    files: Listing
    pinned: bool


class _Read(NamedTuple):
    """Holds a manifest as it was at `stamp`, or None if it cannot be used."""

    stamp: Stamp
    content: str
    manifest: Manifest | None


class ModelRepository:
    """Scans folders. Each is the folder of a bundle, of a model with its versions below it, or of several models.

    A folder that cannot be read for the moment counts as unchanged. The log says so once.

    Only one thread at a time may use it.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._read: dict[Path, _Read] = {}
        self._before: dict[Path, FoundVersion] = {}  # by folder
        self._held: set[Path] = set()  # the folders of `folders` that have ever held a bundle
        self._unreadable: dict[Path, str] = {}  # folder to reason, in the last scan

    def scan(self) -> list[FoundVersion]:
        """Returns the versions in the folders: in the order of the folders, then by name, then the newest first.

        Does blocking I/O.

        Skips hidden folders, and folders without a manifest, because they may still be in the middle of a copy.

        Raises:
            BundleError: one of the folders has never held a bundle, or none of them holds one now.
        """
        logged, self._unreadable = self._unreadable, {}
        found: list[FoundVersion] = []
        for folder in self._folders:
            here = [*self._versions(folder)]
            if here:
                self._held.add(folder)
            elif folder not in self._held:
                if folder in self._unreadable:
                    raise BundleError(f"the folder {folder} cannot be read: {self._unreadable[folder]}")
                raise BundleError(f"there is no bundle at {folder}; `zfserve export` writes one")
            else:
                self._unreadable.setdefault(folder, "there is no bundle any more")
            found += sorted(sorted(here, key=_newness, reverse=True), key=lambda version: version.name)
        for folder, reason in self._unreadable.items():
            if logged.get(folder) != reason:
                _log.warning("a folder cannot be read", extra={"folder": str(folder), "reason": reason})
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
            self._note_unreadable(folder, error)
            return folder in self._before

    def _folders_in(self, folder: Path) -> list[Path]:
        """Returns the folders in `folder` that are not hidden, sorted by name."""
        try:
            with os.scandir(folder) as entries:
                return sorted(folder / entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._note_unreadable(folder, error)
            return sorted(known for known in self._before if known.parent == folder)

    def _note_unreadable(self, folder: Path, error: OSError) -> None:
        self._unreadable[folder] = error.strerror or type(error).__name__

    def _bundles(self, folders: Sequence[Path], fallback: str, pinned: bool) -> Iterator[FoundVersion]:
        """Yields the versions of one model. Manifests that cannot be read get the model's name from their
        neighbours."""
        listed = []
        for folder in folders:
            try:
                files = _list_files(folder)
            except OSError as error:
                self._note_unreadable(folder, error)
                if folder in self._before:
                    yield self._before[folder]
                continue
            stamp = next((entry for entry in files if entry[0] == MANIFEST), None)
            if stamp is not None:  # otherwise it has just been removed
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


def group_by_model(found: Sequence[FoundVersion]) -> dict[str, list[FoundVersion]]:
    """Returns the versions of each model, the newest first. Models keep the order in which they were found."""
    names = [*dict.fromkeys(version.name for version in found)]
    newest_first = sorted(found, key=_newness, reverse=True)
    ordered = sorted(newest_first, key=lambda version: names.index(version.name))
    return {name: [*versions] for name, versions in groupby(ordered, key=lambda version: version.name)}


def _newness(found: FoundVersion) -> tuple[tuple[bool, int, str], ...]:
    return version_key(found.version)


def _read(file: Path) -> tuple[str, Manifest | None]:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest(), read_manifest(file)
    except (OSError, BundleError, RecursionError):  # loading the bundle reports the reason
        return "", None


def _list_files(folder: Path) -> Listing:
    """Returns the stamps of the files in `folder`, with links followed, or () if the folder is gone.

    Raises:
        OSError: the folder cannot be read.
    """
    listed = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # the file has just been removed, or the link is broken
                if entry.is_file():
                    status = entry.stat()
                    times = status.st_mtime_ns, status.st_ctime_ns
                    listed.append((entry.name, status.st_size, *times, status.st_ino))
    return tuple(sorted(listed))
