"""One engine on disk: the plan, the record beside it, and whether the two belong together. Used by `engine_store`."""

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
    """An engine's files are not as they were written; the message says how, as a sentence without its full stop."""


class EngineRecord(BaseModel):
    """What is written beside a plan.

    Attributes:
        model, version: of the bundle that it was built from. For the reader; the graph's digest is what counts.
        sha256: of the plan, in hex.
        summary: the builder's.
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
        """Whether it was built for that graph or another version of that model, in that precision by that library. If
        so, what keeps it from being used is worth telling."""
        built, wanted = self.identity.settings, request.settings
        same_model = self.model == request.model or self.identity.graph_sha256 == request.graph_sha256
        return same_model and (built.library, built.precision) == (wanted.library, wanted.precision)


@dataclass(frozen=True)
class StoredEngine:
    """An engine that may be used.

    Attributes:
        plan: the bytes that were verified; the file is not to be read again.
    """

    file: Path
    record: EngineRecord
    plan: bytes = field(repr=False)

    def hold_for(self, owner: object) -> None:
        """Keep `zfserve engines prune` from removing it as long as `owner` lives, which is what runs the plan."""
        held = ExitStack()
        with suppress(OSError):  # gone already, or on a file system without locks: it runs all the same
            held.enter_context(shared_lock(self.file))
        weakref.finalize(owner, held.close)

    def runtime_cache(self, gpu: GpuFacts) -> ChecksummedFile:
        """Where tensorrt-rtx keeps what it compiles on the card, so that it starts faster the next time."""
        card = hashlib.sha256(f"{gpu.name} {gpu.compute_capability}".encode()).hexdigest()[:12]
        return ChecksummedFile(self.file.with_name(f"{self.file.stem}-{card}{RUNTIME_CACHE}"))


@dataclass(frozen=True)
class StoreEntry:
    """One key of the store, whatever there is of it.

    Attributes:
        file: the plan; it may be missing.
        record: None where it is missing or cannot be read.
        damage: as in EngineDamaged; None where none is seen.
    """

    file: Path
    record: EngineRecord | None
    damage: str | None

    @property
    def key(self) -> str:
        return self.file.stem

    @classmethod
    def look(cls, file: Path) -> Self:
        """Everything but the plan's digest."""
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
        """Raises EngineDamaged, also where the plan differs from its digest."""
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
    """The record beside the plan `file`.

    Raises:
        EngineDamaged: it is missing, unreadable, of another schema, or does not have the key that it is stored under.
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
