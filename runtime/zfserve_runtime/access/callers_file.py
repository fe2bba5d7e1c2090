"""Reads and writes the file of callers. It names each caller, how to recognise it, and what it may call.

    {"callers": [
      {"name": "shop",    "token_sha256": "5e88...", "allow": ["classify", "describe"]},
      {"name": "archive", "certificate": "archive.example.org", "allow": ["all"]}
    ]}

`zfserve token` writes it, operators edit it by hand, and `authorizer` reads it.

The file holds a plain sha256 of each token. A slow, salted hash protects secrets that an attacker can guess from a
list. A token has 256 random bits, so there is no such list, and a slow hash would only cost every request tens of
milliseconds.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from zfserve_runtime.access.permissions import permitted_methods
from zfserve_runtime.atomic_file import write_atomically

_TOKEN_BYTES = 32
_PREFIX = "zfs_"
"""Marks a token as ours, for people and for programs that search repositories for secrets."""

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


class CallersFileError(ValueError):
    """The file cannot be used. The message names the file and every fault, and quotes nothing of its contents."""


@dataclass(frozen=True)
class Caller:
    """Identifies a caller.

    Attributes:
        name: the caller's name, or "" if it is unknown.
        methods: the full names of the methods that it may call. None: all methods.
    """

    name: str = ""
    methods: frozenset[str] | None = None

    def may_call(self, method: str) -> bool:
        """Returns True if the caller may call `method`, a full name."""
        return self.methods is None or method in self.methods


class CallerEntry(BaseModel):
    """Describes one caller in the file. It is recognised by a token, by a name in its TLS certificate, or by either."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    token_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    certificate: str | None = Field(None, min_length=1, description="a subject alternative name, or the common name")
    allow: tuple[str, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a caller's name has 1 to 64 letters, digits, and . _ @ -")
        return name

    @field_validator("allow")
    @classmethod
    def _check_allow(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        permitted_methods(allow)
        return allow

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if self.token_sha256 is None and self.certificate is None:
            raise ValueError(f"{self.name} has neither token_sha256 nor certificate")
        return self


class CallersFile(BaseModel):
    """Holds the content of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    callers: tuple[CallerEntry, ...] = ()

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        for field in ("name", "token_sha256", "certificate"):
            values = Counter(value for entry in self.callers if (value := getattr(entry, field)) is not None)
            if values and values.most_common(1)[0][1] > 1:
                raise ValueError(f"two callers have the same {field}")
        return self


class Callers:
    """Looks up the callers of a file."""

    def __init__(self, file: CallersFile) -> None:
        self._by_digest: list[tuple[bytes, Caller]] = []
        self._by_certificate: dict[str, Caller] = {}
        for entry in file.callers:
            caller = Caller(entry.name, permitted_methods(entry.allow))
            if entry.token_sha256 is not None:
                self._by_digest.append((bytes.fromhex(entry.token_sha256), caller))
            if entry.certificate is not None:
                self._by_certificate[entry.certificate] = caller

    def find_by_token(self, token: str) -> Caller | None:
        """Returns the caller with that token, or None. Takes the same time for every token, right or wrong."""
        digest, found = hashlib.sha256(token.encode()).digest(), None
        for known, caller in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def find_by_certificate(self, names: Iterable[str]) -> Caller | None:
        """Returns the caller of the first known name, or None. `names` are in the order of the certificate."""
        return next((caller for name in names if (caller := self._by_certificate.get(name)) is not None), None)


def read_callers_file(file: Path) -> CallersFile:
    """Reads and validates the file.

    Raises:
        CallersFileError: the file cannot be read, or is not valid.
    """
    try:
        return CallersFile.model_validate(json.loads(file.read_bytes()))
    except OSError as error:
        raise CallersFileError(f"the file of callers {file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        # The message leaves out the value at fault. It may be a token that was pasted in place of its hash.
        faults = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'callers'}: {_sentence(one['msg'])}" for one in error.errors()
        )
        raise CallersFileError(f"the file of callers {file} is not usable: {faults}") from None
    except ValueError as error:
        raise CallersFileError(f"the file of callers {file} is not JSON") from error


def write_callers_file(file: Path, content: CallersFile) -> None:
    """Replaces the file atomically. A new file is readable by this user only; an old one keeps its owner and mode.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(content.model_dump(exclude_none=True), indent=2) + "\n"
    write_atomically(file, text.encode(), mode=0o600, keep_owner=True)  # otherwise the server might lose access


def new_token() -> tuple[str, str]:
    """Returns a new token of 256 random bits, and its sha256 in hex."""
    token = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    return token, hashlib.sha256(token.encode()).hexdigest()


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ")
