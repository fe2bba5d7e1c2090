"""Files that are whole or not there, whatever happens while they are written. Used by `engine_store`."""

import fcntl
import hashlib
import logging
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

PARTIAL = ".partial"
_DIGEST_BYTES = 32


def write_durably(file: Path, content: bytes, mode: int = 0o666, *, keep_owner: bool = False) -> None:
    """Replace `file` by way of a hidden one beside it, which is locked while it is written: one that is not locked was
    left by a process that died.

    Args:
        mode: who may do what with it, less what the umask takes away.
        keep_owner: where `file` is there, its owner, group and mode stay, or it does.

    Raises:
        OSError: such as a full disk; `file` is as it was.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as opened:  # noqa: PTH123
            fcntl.flock(opened, fcntl.LOCK_EX)
            if keep_owner and file.exists():
                before = file.stat()
                os.fchown(opened.fileno(), before.st_uid, before.st_gid)
                os.fchmod(opened.fileno(), stat.S_IMODE(before.st_mode))
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())  # before the rename: after a power cut the name must not lead to half a file
            partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)


@dataclass(frozen=True)
class SealedFile:
    """A cache that begins with the sha256 of the rest of it. To lose it costs time only, so nothing here raises."""

    path: Path

    def read(self) -> bytes | None:
        """None where there is none, or where it was damaged."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the cache %s cannot be read: %s", self.path, error.strerror)
            return None
        seal, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != seal:
            log.warning("the cache %s is damaged and is left aside", self.path)
            return None
        return content

    def write(self, content: bytes) -> None:
        """Replace it; where the folder cannot be written, it stays as it was."""
        try:
            write_durably(self.path, hashlib.sha256(content).digest() + content)
        except OSError as error:
            log.info("the cache %s is not kept: %s", self.path, error.strerror)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
