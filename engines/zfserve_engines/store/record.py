"""One engine on disk: its plan and its record, and the check that they belong together. Used by `store`."""

import hashlib
import weakref
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from zfserve_runtime.atomic_file import ChecksummedFile
from zfserve_runtime.file_lock import shared_lock

from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.store.identity import EngineIdentity, EngineRequest

PLAN, RECORD, RUNTIME_CACHE = ".engine", ".json", ".runtime-cache"


class EngineDamaged(Exception):
    """The files of an engine are not as they were written. The message says how, as a sentence without a full stop."""


class EngineRecord(BaseModel):
    """The record that is written beside a plan.

    Attributes:
        schema_version: the version of this schema.
        model: the name of the bundle's model, for messages. Only the graph's digest is compared.
        version: the version of the bundle's model, for messages.
        identity: everything that determines the content of the engine.
        sha256: the digest of the plan, in hex.
        size_bytes: the size of the plan in bytes.
        created_at: the time of the build.
        summary: the builder's `BuildSummary`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    version: str
    identity: EngineIdentity
    sha256: str
    size_bytes: int
    created_at: datetime
    summary: dict[str, JsonValue]

    def is_meant_for(self, request: EngineRequest) -> bool:
        """Returns whether the engine was built for such a request, so that the user is told why it cannot be used.

        It was if the library and the precision are the same, and the graph or the name of the model.
        """
        built, wanted = self.identity.settings, request.settings
        same_model = self.model == request.model or self.identity.graph_sha256 == request.graph_sha256
        return same_model and (built.library, built.precision) == (wanted.library, wanted.precision)


@dataclass(frozen=True)
class StoredEngine:
    """An engine that was verified and may be used.

    Attributes:
        file: the file of the plan.
        record: the record beside it.
        plan: the verified bytes. The file must not be read again.
    """

    file: Path
    record: EngineRecord
    plan: bytes = field(repr=False)

    def hold_lock_for(self, owner: object) -> None:
        """Holds a shared lock on the file while `owner`, which runs the plan, lives. So `prune` does not remove it."""
        held = ExitStack()
        with suppress(OSError):  # already removed, or on a file system without locks: the plan runs anyway
            held.enter_context(shared_lock(self.file))
        weakref.finalize(owner, held.close)

    def runtime_cache(self, gpu: GpuFacts) -> ChecksummedFile:
        """Returns the file for the kernels that tensorrt-rtx compiles on the GPU, which make the next start faster."""
        card = hashlib.sha256(f"{gpu.name} {gpu.compute_capability}".encode()).hexdigest()[:12]
        return ChecksummedFile(self.file.with_name(f"{self.file.stem}-{card}{RUNTIME_CACHE}"))


@dataclass(frozen=True)
class StoreEntry:
    """The files of one key of the store, which may be incomplete.

    Attributes:
        file: the file of the plan, which may be missing.
        record: the record; None where it is missing or cannot be read.
        damage: a sentence as in EngineDamaged; None where no damage was found.
    """

    file: Path
    record: EngineRecord | None
    damage: str | None

    @property
    def key(self) -> str:
        """The key of the engine, a sha256 in hex."""
        return self.file.stem

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads an entry and checks everything except the plan's digest."""
        record = None
        try:
            record = read_record(file)
            size_bytes = file.stat().st_size
            if size_bytes != record.size_bytes:
                raise EngineDamaged(f"its plan has {size_bytes:,} of {record.size_bytes:,} bytes")
        except FileNotFoundError:
            return cls(file, record, "its plan is missing")
        except EngineDamaged as damaged:
            return cls(file, record, str(damaged))
        return cls(file, record, None)

    def load(self) -> StoredEngine:
        """Reads the plan and checks its digest. Raises EngineDamaged where the entry is damaged."""
        if self.damage or self.record is None:
            raise EngineDamaged(self.damage)
        try:
            plan = self.file.read_bytes()
        except OSError as error:
            raise EngineDamaged(f"its plan cannot be read: {error.strerror}") from error
        if hashlib.sha256(plan).hexdigest() != self.record.sha256:
            raise EngineDamaged("its plan differs from its digest")
        return StoredEngine(self.file, self.record, plan)


def read_record(file: Path) -> EngineRecord:
    """Reads the record beside the plan `file`.

    Raises:
        EngineDamaged: the record is missing, cannot be read, has another schema, or does not belong to its key.
    """
    try:
        record = EngineRecord.model_validate_json(file.with_suffix(RECORD).read_bytes())
    except FileNotFoundError as error:
        raise EngineDamaged("its record is missing") from error
    except OSError as error:
        raise EngineDamaged(f"its record cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise EngineDamaged("its record is not one that this release reads") from error
    if record.identity.key != file.stem:
        raise EngineDamaged("its record was changed, or is another engine's")
    return record
