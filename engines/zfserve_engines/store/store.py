"""The folder of compiled TensorRT engines: each built once, kept, verified, and given only to whom it was built for.

Called by `zfserve compile`, by the server when it chooses an engine, and by `zfserve engines`.

<bundle>/engines/, or a folder of its own for many models
  <key>.engine                            the plan; the key is that of its identity (see `engine_identity`)
  <key>.json                              its record, written last: a plan without one was never finished
  <key>.lock                              there while it is built
  <key>-<card>.runtime-cache              what tensorrt-rtx compiled on a card when the engine first ran there
  tensorrt-<version>-<card>.timing-cache  what tensorrt measured on a card; every build there starts from it
  .*.partial                              a file that is being written

Reading needs neither a lock nor the right to write.
"""

import hashlib
import logging
import re
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from zfserve_runtime.atomic_file import PARTIAL, ChecksummedFile, write_atomically
from zfserve_runtime.bundle import Bundle
from zfserve_runtime.file_lock import exclusive_lock, is_in_use, is_locked, remove_unless_in_use

from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.opening import InvalidEnginePolicy
from zfserve_engines.store.identity import EngineIdentity, EngineRequest
from zfserve_engines.store.record import (
    PLAN,
    RECORD,
    RUNTIME_CACHE,
    EngineDamaged,
    EngineRecord,
    StoredEngine,
    StoreEntry,
)
from zfserve_engines.tensorrt.build_progress import OnProgress
from zfserve_engines.tensorrt.builder import BuiltEngine

log = logging.getLogger(__name__)

FOLDER = "engines"
"""Of a bundle's own store."""
TIMING_CACHE = ".timing-cache"
_KEY = re.compile("[0-9a-f]{64}")  # what else is in the folder is not ours


class EngineRefused(EngineUnavailable):
    """The store holds no engine that may be used.

    Attributes:
        reason: why not the one that comes nearest; None where there is none at all.
    """

    def __init__(self, message: str, reason: str | None) -> None:
        super().__init__(message)
        self.reason = reason


Build = Callable[[bytes], BuiltEngine]
"""Builds an engine, given the timing cache of earlier builds, which may be empty."""


class EngineStore:
    """A folder of engines. Any number of processes may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, bundle: Bundle, engine_cache: Path | None = None) -> Self:
        """The bundle's own, or that in `engine_cache`, which many bundles may share: a key tells their graphs apart."""
        return cls(engine_cache or bundle.folder / FOLDER)

    def find(self, request: EngineRequest) -> StoredEngine:
        """The newest engine for `request`, verified. One that was built for more cards than are asked for will do.

        Raises:
            EngineRefused: there is none, or none that may be used.
        """
        refusals: list[tuple[int, str]] = []
        for entry in self._candidates(request):
            differences = entry.record.identity.differences(request) if entry.record else []
            if differences:
                reason = differences[0]
            else:
                try:
                    return entry.load()
                except EngineDamaged as damaged:
                    reason = str(damaged)
            refusals.append((len(differences), f"engine {entry.key[:12]} is refused: {reason}"))
        nearest = min(refusals, key=lambda refusal: refusal[0]) if refusals else None
        raise _refused(request, self.folder, nearest[1] if nearest else None)

    def obtain(
        self, request: EngineRequest, build: Build, on_progress: OnProgress, on_invalid: InvalidEnginePolicy = "rebuild"
    ) -> StoredEngine:
        """An engine for `request`, verified; where there is none it is built, by one process at a time.

        Whatever `build` raises passes through, and leaves nothing behind.

        Args:
            on_invalid: what to do where there is one for this model that may not be used, and nobody is building one
                that may.

        Raises:
            EngineRefused: there is one that may not be used, and it is not to be rebuilt.
            EngineUnavailable: one has to be built, and the folder cannot be written.
        """
        lock = self._lock(EngineIdentity.of(request).key)
        try:
            return self.find(request)
        except EngineRefused as refusal:
            if refusal.reason and on_invalid == "refuse" and not is_locked(lock):
                raise
            doubt = str(refusal)

        def on_wait() -> None:
            on_progress("waiting for another process that builds the same engine", 0, 1)

        with ExitStack() as locked:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                locked.enter_context(exclusive_lock(lock, on_wait))
            except OSError as error:
                raise self._unwritable(doubt, error) from error
            return self._find_or_build(request, build, on_invalid)

    def entries(self) -> list[StoreEntry]:
        """All that the store holds, the newest first and last what has no record. Everything but the digest of each
        plan is checked; `StoreEntry.load` checks that too."""
        files = {file.with_suffix(PLAN) for suffix in (PLAN, RECORD) for file in self.folder.glob(f"*{suffix}")}
        entries = [StoreEntry.look(file) for file in sorted(files) if _KEY.fullmatch(file.stem)]
        return sorted(entries, key=lambda entry: -entry.record.created_at.timestamp() if entry.record else 0)

    def is_building(self, entry: StoreEntry) -> bool:
        return is_locked(self._lock(entry.key))

    def is_in_use(self, entry: StoreEntry) -> bool:
        """Whether `remove` would leave it."""
        return self.is_building(entry) or is_in_use(entry.file)

    def remove(self, entry: StoreEntry) -> bool:
        """Remove an engine and its caches; False, and all as it was, where it is being built or in use.

        Raises:
            OSError: the folder cannot be written.
        """
        try:
            with exclusive_lock(self._lock(entry.key), on_wait=None):
                if not remove_unless_in_use(entry.file):
                    return False
                for file in (entry.file.with_suffix(RECORD), *self.folder.glob(f"{entry.key}-*{RUNTIME_CACHE}")):
                    file.unlink(missing_ok=True)
                return True
        except BlockingIOError:
            return False

    def leftovers(self, key: str = "") -> list[Path]:
        """Files, for `key` or for any, that processes which died were writing."""
        return sorted(file for file in self.folder.glob(f".{key}*{PARTIAL}") if not is_locked(file))

    def timing_caches(self) -> dict[Path, str]:
        """With the version of the library that wrote each."""
        return {file: file.name.split("-")[1] for file in sorted(self.folder.glob(f"tensorrt-*-*{TIMING_CACHE}"))}

    def _candidates(self, request: EngineRequest) -> list[StoreEntry]:
        """Engines meant for such a request, and the wreck of the one that it would build."""
        key = EngineIdentity.of(request).key
        return [
            entry
            for entry in self.entries()
            if (entry.record.is_meant_for(request) if entry.record else entry.key == key)
        ]

    def _find_or_build(self, request: EngineRequest, build: Build, on_invalid: InvalidEnginePolicy) -> StoredEngine:
        try:
            return self.find(request)  # by now the process that was waited for may have built it
        except EngineRefused as refusal:
            if refusal.reason and on_invalid == "refuse":
                raise
            if refusal.reason:
                log.warning("%s; building another", refusal.reason)
        for leftover in self.leftovers(EngineIdentity.of(request).key):
            leftover.unlink(missing_ok=True)  # or builders that die over and over would fill the disk
        timing_cache = self._timing_cache(request)
        built = build((timing_cache and timing_cache.read()) or b"")
        if timing_cache and built.timing_cache:
            timing_cache.write(built.timing_cache)
        return self._keep(request, built)

    def _keep(self, request: EngineRequest, built: BuiltEngine) -> StoredEngine:
        record = EngineRecord(
            model=request.model,
            version=request.version,
            identity=EngineIdentity.of(request),
            sha256=hashlib.sha256(built.plan).hexdigest(),
            size_bytes=len(built.plan),
            created_at=datetime.now(UTC),
            summary=built.summary.to_json(),
        )
        file = self.folder / f"{record.identity.key}{PLAN}"
        try:
            write_atomically(file, built.plan)
            write_atomically(file.with_suffix(RECORD), record.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            raise self._unwritable("the engine was built and cannot be kept", error) from error
        return StoredEngine(file, record, built.plan)

    def _timing_cache(self, request: EngineRequest) -> ChecksummedFile | None:
        card = EngineIdentity.of(request).card
        if card is None:
            return None
        digest = hashlib.sha256(card.model_dump_json().encode()).hexdigest()[:12]
        return ChecksummedFile(self.folder / f"tensorrt-{request.library_version}-{digest}{TIMING_CACHE}")

    def _lock(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    def _unwritable(self, doubt: str, error: OSError) -> EngineUnavailable:
        return EngineUnavailable(
            f"{doubt}, and {self.folder} cannot be written ({error.strerror}); name another folder with --engine-cache"
        )


def _refused(request: EngineRequest, folder: Path, reason: str | None) -> EngineRefused:
    settings = request.settings
    wanted = (
        f"{settings.precision} engine of {request.model} {request.version} "
        f"by {settings.library} {request.library_version}"
    )
    if reason is None:
        return EngineRefused(f"there is no {wanted} in {folder} (`zfserve compile` builds one)", None)
    return EngineRefused(f"there is no {wanted} to use in {folder}: {reason}", reason)
