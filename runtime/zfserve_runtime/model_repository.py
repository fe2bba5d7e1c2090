"""Finds the versions of models in the folders that `--model` names, and shows which of them have changed.

Server and worker scan the folders repeatedly, because inotify does not report the changes that another machine makes
on a network volume. A scan lists the files of each version, and reads only manifests that have changed. So it costs a
few system calls for each version.
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
        name: the model's name in the manifest. If the manifest cannot be read, the name in another version's manifest
            in the same model's folder, otherwise the name of that folder.
        version: the version in the manifest. If the manifest cannot be read, the name of the folder.
        fingerprint: the digest of the weights, or "" if the manifest cannot be read.
        manifest_digest: the sha256 of the manifest, or "" if it cannot be read. The manifest holds the digests of all
            other files, so equal values mean equal bundles.
        files: the stamps of the files. They stay equal as long as nobody touches the folder.
        pinned: True if the version's own folder was given, and not the folder of its model.
    """

    folder: Path
    name: str
    version: str
    fingerprint: str
    manifest_digest: str
    files: Listing
    pinned: bool


class _CachedManifest(NamedTuple):
    """Holds a manifest and its digest as they were at `stamp`. `manifest` is None if it cannot be used."""

    stamp: Stamp
    digest: str
    manifest: Manifest | None


class ModelRepository:
    """Scans folders. Each one is a bundle, or holds the versions of one model, or holds several models.

    A folder that cannot be read at the moment counts as unchanged. The log reports it once.

    Only one thread at a time may use it.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._manifests: dict[Path, _CachedManifest] = {}
        self._before: dict[Path, FoundVersion] = {}  # by folder
        self._held: set[Path] = set()  # the folders of `folders` that have ever held a bundle
        self._unreadable: dict[Path, str] = {}  # folder to reason, in the last scan

    def scan(self) -> list[FoundVersion]:
        """Returns the versions, sorted by folder (in the order given), then by model name, then the newest first.

        Skips hidden folders. Skips folders without a manifest too, because they may still be in the middle of a copy.
        It blocks on file I/O.

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
        self._manifests = {folder: read for folder, read in self._manifests.items() if folder in self._before}
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
        """Yields the versions of one model, whose bundles are `folders`.

        Args:
            fallback: the model's name if no manifest can be read.
        """
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
                read.digest,
                files,
                pinned,
            )

    def _manifest(self, folder: Path, stamp: Stamp) -> _CachedManifest:
        known = self._manifests.get(folder)
        if known is None or known.stamp != stamp or known.manifest is None:
            known = self._manifests[folder] = _CachedManifest(stamp, *_read(folder / MANIFEST))
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
