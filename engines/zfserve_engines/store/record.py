"""Reads one engine from disk: its plan and its record. Checks that they belong together. `store` uses it."""

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
    """The files of an engine are not as they were written. The message is a sentence without a full stop."""


class EngineRecord(BaseModel):
    """Defines the record that is written beside a plan.

    Attributes:
        schema_version: the version of this schema.
        model: the name of the bundle's model, for messages. Only the graph's digest is compared.
        version: the version of the bundle's model, for messages.
        identity: everything that determines the content of the engine.
        sha256: the digest of the plan, in hex.
        size_bytes: the size of the plan in bytes.
        created_at: the time of the build, in UTC.
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
        """Returns True if the user would expect this engine to serve `request`. An error then says why it may not.

        That is so if the library and the precision are the same, and also the graph or the name of the model.
        """
        built, wanted = self.identity.settings, request.settings
        same_model = self.model == request.model or self.identity.graph_sha256 == request.graph_sha256
        return same_model and (built.library, built.precision) == (wanted.library, wanted.precision)


@dataclass(frozen=True)
class StoredEngine:
    """Holds an engine that was verified and may be used.

    Attributes:
        file: the file of the plan.
        record: the record beside it.
        plan: the verified bytes of the plan. The file must not be read again, because it may have changed.
    """

    file: Path
    record: EngineRecord
    plan: bytes = field(repr=False)

    def hold_lock_for(self, owner: object) -> None:
        """Holds a shared lock on the file while `owner`, which runs the plan, exists. So `prune` keeps the file."""
        held = ExitStack()
        with suppress(OSError):  # if the file is gone, or cannot be locked, the plan runs anyway
            held.enter_context(shared_lock(self.file))
        weakref.finalize(owner, held.close)

    def runtime_cache(self, gpu: GpuFacts) -> ChecksummedFile:
        """Returns the file of kernels that tensorrt-rtx compiles on this GPU. It makes the next start faster."""
        gpu_digest = hashlib.sha256(f"{gpu.name} {gpu.compute_capability}".encode()).hexdigest()[:12]
        return ChecksummedFile(self.file.with_name(f"{self.file.stem}-{gpu_digest}{RUNTIME_CACHE}"))


@dataclass(frozen=True)
class StoreEntry:
    """Describes the files of one key of the store. They may be incomplete or damaged.

    Attributes:
        file: the file of the plan, which may be missing.
        record: the record; None where it is missing or cannot be read.
        damage: the message of EngineDamaged; None where no damage was found.
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
        raise EngineDamaged("this release cannot read its record") from error
    if record.identity.key != file.stem:
        raise EngineDamaged("its record was changed, or is another engine's")
    return record
