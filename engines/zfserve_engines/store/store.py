"""Keeps compiled TensorRT engines in a folder. Each engine is built once, verified, and used only where it is valid.

`zfserve compile`, `zfserve engines`, and the opener of the engines on TensorRT call it. The folder is
<bundle>/engines/, or one folder that many models share. It holds these files:

  <key>.engine                            the plan; the key is the digest of its identity (see `identity`)
  <key>.json                              its record, which is written last: a plan without it is incomplete
  <key>.lock                              exists while the engine is built
  <key>-<gpu>.runtime-cache               the kernels that tensorrt-rtx compiled when the engine first ran on a GPU
  tensorrt-<version>-<gpu>.timing-cache   the timings that tensorrt measured on a GPU; its next builds reuse them
  .*.partial                              a file that is being written

Reading needs no lock and no permission to write.
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
"""The folder of compiled engines inside a bundle."""
TIMING_CACHE = ".timing-cache"
_KEY = re.compile("[0-9a-f]{64}")  # other files in the folder do not belong to the store


class NoValidEngine(EngineUnavailable):
    """The store holds no engine that may be used.

    Attributes:
        reason: why the engine that fits best may not be used; None if the store has no engine for this request.
    """

    def __init__(self, message: str, reason: str | None) -> None:
        super().__init__(message)
        self.reason = reason


Build = Callable[[bytes], BuiltEngine]
"""Builds an engine. Its argument is the timing cache of earlier builds, which may be empty."""


class EngineStore:
    """Manages a folder of engines. Any number of processes may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, bundle: Bundle, engine_cache: Path | None = None) -> Self:
        """Returns the store in `engine_cache`; if that is None, the store inside the bundle.

        Many bundles may share one folder, because a key contains the digest of the graph.
        """
        return cls(engine_cache or bundle.folder / FOLDER)

    def find(self, request: EngineRequest) -> StoredEngine:
        """Returns the newest valid engine for `request`. An engine that supports more GPUs than requested is valid.

        Raises:
            NoValidEngine: there is no engine, or none that may be used.
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
        raise _no_valid_engine(request, self.folder, nearest[1] if nearest else None)

    def find_or_build(
        self, request: EngineRequest, build: Build, on_progress: OnProgress, on_invalid: InvalidEnginePolicy = "rebuild"
    ) -> StoredEngine:
        """Returns a valid engine for `request`. If there is none, builds one, in one process at a time.

        An exception that `build` raises passes through, and no files are left.

        Args:
            request: the engine that is needed.
            build: builds the engine.
            on_progress: receives the progress while another process builds the same engine.
            on_invalid: the policy if an engine of this model is invalid, and no process is building a valid one.

        Raises:
            NoValidEngine: an engine is invalid, and `on_invalid` forbids another build.
            EngineUnavailable: an engine has to be built, but the folder cannot be written.
        """
        lock = self._lock(EngineIdentity.of(request).key)
        try:
            return self.find(request)
        except NoValidEngine as refusal:
            if refusal.reason and on_invalid == "refuse" and not is_locked(lock):
                raise
            missing = str(refusal)

        def on_wait() -> None:
            on_progress("waiting for another process that builds the same engine", 0, 1)

        with ExitStack() as locked:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                locked.enter_context(exclusive_lock(lock, on_wait))
            except OSError as error:
                raise self._unwritable(missing, error) from error
            return self._build_unless_found(request, build, on_invalid)

    def entries(self) -> list[StoreEntry]:
        """Returns all entries of the store. The newest comes first, and entries without a record come last.

        It checks everything except the digest of each plan, which `StoreEntry.load` checks.
        """
        files = {file.with_suffix(PLAN) for suffix in (PLAN, RECORD) for file in self.folder.glob(f"*{suffix}")}
        entries = [StoreEntry.read(file) for file in sorted(files) if _KEY.fullmatch(file.stem)]
        return sorted(entries, key=lambda entry: -entry.record.created_at.timestamp() if entry.record else 0)

    def is_building(self, entry: StoreEntry) -> bool:
        """Returns True if a process is building the engine."""
        return is_locked(self._lock(entry.key))

    def is_in_use(self, entry: StoreEntry) -> bool:
        """Returns True if a process is building or running the engine. Then `remove` keeps it."""
        return self.is_building(entry) or is_in_use(entry.file)

    def remove(self, entry: StoreEntry) -> bool:
        """Removes an engine and its runtime caches. If it is being built or in use, keeps them and returns False.

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

    def partial_files(self, key: str = "") -> list[Path]:
        """Returns the partial files of processes that died while writing, for `key`; for all keys if it is empty."""
        return sorted(file for file in self.folder.glob(f".{key}*{PARTIAL}") if not is_locked(file))

    def timing_caches(self) -> dict[Path, str]:
        """Returns each timing cache with the version of the library that wrote it."""
        return {file: file.name.split("-")[1] for file in sorted(self.folder.glob(f"tensorrt-*-*{TIMING_CACHE}"))}

    def _candidates(self, request: EngineRequest) -> list[StoreEntry]:
        """Returns the engines that are meant for `request`, and the damaged engine that has its key."""
        key = EngineIdentity.of(request).key
        return [
            entry
            for entry in self.entries()
            if (entry.record.is_meant_for(request) if entry.record else entry.key == key)
        ]

    def _build_unless_found(
        self, request: EngineRequest, build: Build, on_invalid: InvalidEnginePolicy
    ) -> StoredEngine:
        """Builds an engine, unless another process has just built it. The caller holds the engine's lock."""
        try:
            return self.find(request)  # another process may have built it while this one waited
        except NoValidEngine as refusal:
            if refusal.reason and on_invalid == "refuse":
                raise
            if refusal.reason:
                log.warning("%s; building another", refusal.reason)
        for partial in self.partial_files(EngineIdentity.of(request).key):
            partial.unlink(missing_ok=True)  # builders that die repeatedly would fill the disk
        timing_cache = self._timing_cache(request)
        built = build((timing_cache and timing_cache.read()) or b"")
        if timing_cache and built.timing_cache:
            timing_cache.write(built.timing_cache)
        return self._keep(request, built)

    def _keep(self, request: EngineRequest, built: BuiltEngine) -> StoredEngine:
        """Writes an engine and then its record."""
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
            raise self._unwritable("the engine was built but cannot be kept", error) from error
        return StoredEngine(file, record, built.plan)

    def _timing_cache(self, request: EngineRequest) -> ChecksummedFile | None:
        """Returns the timing cache of this library version on this GPU; None for an engine built ahead of time."""
        card = EngineIdentity.of(request).card
        if card is None:
            return None
        digest = hashlib.sha256(card.model_dump_json().encode()).hexdigest()[:12]
        return ChecksummedFile(self.folder / f"tensorrt-{request.library_version}-{digest}{TIMING_CACHE}")

    def _lock(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    def _unwritable(self, missing: str, error: OSError) -> EngineUnavailable:
        return EngineUnavailable(
            f"{missing}, and {self.folder} cannot be written ({error.strerror}); "
            "name another folder with --engine-cache"
        )


def _no_valid_engine(request: EngineRequest, folder: Path, reason: str | None) -> NoValidEngine:
    """Returns the error for `request`. For `reason`, see NoValidEngine."""
    settings = request.settings
    wanted = (
        f"{settings.precision} engine of {request.model} {request.version} "
        f"by {settings.library} {request.library_version}"
    )
    if reason is None:
        return NoValidEngine(f"there is no {wanted} in {folder} (`zfserve compile` builds one)", None)
    return NoValidEngine(f"there is no usable {wanted} in {folder}: {reason}", reason)
