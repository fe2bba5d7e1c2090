"""Keeps the parts of a long run in a folder, so that a run that was killed continues where it stopped.

The folder has the file `run.json`, which says what the run computes: the command, its options, the model and the
photos. A run with other ones is refused. Every file appears in one step.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zfserve.results import ModelIdentity

PLAN_FILE = "run.json"

SCHEMA = 1
"""The version of `run.json`. A later release that computes something else has another one."""


class CannotContinue(Exception):
    """A run cannot continue, or a folder cannot be used. The message says why and what to do."""


@dataclass(frozen=True)
class RunPlan:
    """Says what a run computes.

    Attributes:
        command: the command, such as "atlas".
        model: the model.
        photos: a digest of the photos, as `photos_digest` returns it.
        options: everything else that changes a result, by name. The values are those that JSON has.
    """

    command: str
    model: ModelIdentity
    photos: str
    options: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """Returns the plan as the document of `run.json`."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "model": {"name": self.model.name, "fingerprint": self.model.fingerprint},
            "photos": self.photos,
            "options": json.loads(json.dumps(dict(self.options))),  # tuples become lists, as they do in the file
        }


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, folder: Path, plan: RunPlan) -> "RunFolder":
        """Opens the folder of a run, and makes it if it does not exist.

        Raises:
            CannotContinue: the folder holds another run or other files, or it cannot be read or written.
        """
        run = cls(folder)
        document = plan.document()
        try:
            before = run.read(PLAN_FILE)
            if before is None:
                folder.mkdir(parents=True, exist_ok=True)
                if any(not each.name.startswith(".") for each in folder.iterdir()):
                    raise CannotContinue(f"{folder} has files and no {PLAN_FILE}; name an empty or new folder")
                run.write(PLAN_FILE, json_bytes(document))
                return run
        except OSError as error:
            raise CannotContinue(f"{error.filename or folder} cannot be used: {error.strerror or error}") from error
        _require_same(folder, _parsed(folder, before), document)
        return run

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file of the run, or None if it is not there yet.

        Raises:
            OSError: it cannot be read.
        """
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the run in one step (`write_atomically`)."""
        write_atomically(self.folder / name, content)


def write_atomically(file: Path, content: bytes) -> None:
    """Writes a file in one step, so that no half a file is left behind. It replaces a file of the same name.

    Several processes may write the same file. The last one wins.

    Raises:
        OSError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())  # else a machine that loses power may keep the name and lose the content
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def json_bytes(document: Any) -> bytes:
    """Returns a document as JSON in UTF-8, the same bytes for equal documents."""
    return (json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def photos_digest(photos: Iterable[Path], root: Path) -> str:
    """Returns a digest of the names below `root` and the sizes of photos. Contents are not read.

    Args:
        photos: the photos, each below `root`. Their order counts.
        root: the folder of the photos. It may lie elsewhere when the run continues.

    Raises:
        OSError: a photo is gone.
    """
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(
            f"{photo.relative_to(root).as_posix()}\0{photo.stat().st_size}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def require_same_model(first: ModelIdentity, now: ModelIdentity) -> None:
    """Checks that an answer comes from the model with which the study began.

    Raises:
        CannotContinue: it comes from other weights, for example because a new version was swapped in.
    """
    if first.fingerprint != now.fingerprint:
        raise CannotContinue(
            f"the server now answers with {now.name} {now.version}, and the study began with {first.name} "
            f"{first.version}; name the version with --model {first.name}:{first.version}, or start again"
        )


def _parsed(folder: Path, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CannotContinue(f"{folder / PLAN_FILE} is damaged; delete {folder}, and start again")
    return document


def _require_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises CannotContinue if two plans differ. The sentence names the first difference."""
    advice = "start again in another folder"
    if before.get("schema") != now["schema"]:
        raise CannotContinue(f"{folder} holds a run of another release of zfserve; {advice}")
    if before.get("command") != now["command"]:
        raise CannotContinue(f"{folder} holds a run of `zfserve {before.get('command')}`; {advice}")
    if (model := _part(before, "model")).get("fingerprint") != now["model"]["fingerprint"]:
        raise CannotContinue(
            f"{folder} holds a run with other weights, of {model.get('name')}; serve these again, or {advice}"
        )
    options, wanted = _part(before, "options"), now["options"]
    for name in sorted({*options, *wanted}):
        if options.get(name) != wanted.get(name):
            was, is_now = (json.dumps(each.get(name), ensure_ascii=False) for each in (options, wanted))
            raise CannotContinue(
                f"{folder} holds a run with {name} {was}, and not {is_now}; give the same options, or {advice}"
            )
    if before.get("photos") != now["photos"]:
        raise CannotContinue(f"the photos have changed since the run in {folder} began; put them back, or {advice}")


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}
