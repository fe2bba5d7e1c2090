"""The file of those who may call: a name, by what it is recognised, and what it permits.

    {"callers": [
      {"name": "shop",    "token_sha256": "5e88...", "allow": ["classify", "describe"]},
      {"name": "archive", "certificate": "archive.example.org", "allow": ["all"]}
    ]}

Written by `zfserve token` and by hand, read by `access`.

A token is 256 random bits, so its plain sha256 is as good as secret: there is no list of likely tokens to try, which is
what a slow, salted hash defends against. Such a hash would cost every request tens of milliseconds and guard nothing.
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
from zfserve_runtime.durable_file import write_durably

_TOKEN_BYTES = 32
_PREFIX = "zfs_"
"""Tells a token from other secrets, to whoever finds it and to programs that look for secrets in repositories."""

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


class CallersFileError(ValueError):
    """The file cannot be used; the message names it and every fault, and none of its contents."""


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        name: "" where that is unknown.
        methods: full names of those it may call; None: all.
    """

    name: str = ""
    methods: frozenset[str] | None = None

    def may_call(self, method: str) -> bool:
        return self.methods is None or method in self.methods


class CallerEntry(BaseModel):
    """One who may call, recognised by a token, by a name in a TLS certificate, or by either."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    token_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    certificate: str | None = Field(None, min_length=1, description="a subject alternative name, or the common name")
    allow: tuple[str, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _loggable(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a caller's name has 1 to 64 letters, digits, and . _ @ -")
        return name

    @field_validator("allow")
    @classmethod
    def _known(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        permitted_methods(allow)
        return allow

    @model_validator(mode="after")
    def _recognisable(self) -> Self:
        if self.token_sha256 is None and self.certificate is None:
            raise ValueError(f"{self.name} has neither token_sha256 nor certificate")
        return self


class CallersFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    callers: tuple[CallerEntry, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for field in ("name", "token_sha256", "certificate"):
            values = Counter(value for entry in self.callers if (value := getattr(entry, field)) is not None)
            if values and values.most_common(1)[0][1] > 1:
                raise ValueError(f"two callers have the same {field}")
        return self


class Callers:
    """Those of a file, as they are looked up."""

    def __init__(self, file: CallersFile) -> None:
        self._by_digest: list[tuple[bytes, Caller]] = []
        self._by_certificate: dict[str, Caller] = {}
        for entry in file.callers:
            caller = Caller(entry.name, permitted_methods(entry.allow))
            if entry.token_sha256 is not None:
                self._by_digest.append((bytes.fromhex(entry.token_sha256), caller))
            if entry.certificate is not None:
                self._by_certificate[entry.certificate] = caller

    def with_token(self, token: str) -> Caller | None:
        """Takes as long for one that is nearly right as for one that is not, and as for the right one."""
        digest, found = hashlib.sha256(token.encode()).digest(), None
        for known, caller in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def with_certificate(self, names: Iterable[str]) -> Caller | None:
        """The first of `names`, in the order of the certificate, that is known."""
        return next((caller for name in names if (caller := self._by_certificate.get(name)) is not None), None)


def read_callers_file(file: Path) -> CallersFile:
    """Raises CallersFileError."""
    try:
        return CallersFile.model_validate(json.loads(file.read_bytes()))
    except OSError as error:
        raise CallersFileError(f"the file of callers {file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        # By place and kind only: the value at fault may be a token that was pasted for its hash.
        faults = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'callers'}: {_words(one['msg'])}" for one in error.errors()
        )
        raise CallersFileError(f"the file of callers {file} is not usable: {faults}") from None
    except ValueError as error:
        raise CallersFileError(f"the file of callers {file} is not JSON") from error


def write_callers_file(file: Path, content: CallersFile) -> None:
    """Whole or not at all, and for this user's eyes only. Raises OSError."""
    text = json.dumps(content.model_dump(exclude_none=True), indent=2) + "\n"
    write_durably(file, text.encode(), mode=0o600, keep_owner=True)  # else the server might read it no more


def new_token() -> tuple[str, str]:
    """A token of 256 random bits, and its sha256 in hexadecimal."""
    token = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    return token, hashlib.sha256(token.encode()).hexdigest()


def _words(message: str) -> str:
    return message.removeprefix("Value error, ")
