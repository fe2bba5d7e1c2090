"""Writes files atomically: a reader finds the old content or the new, never a part.

The engine store and the file of callers use it.
"""

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


def write_atomically(file: Path, content: bytes, mode: int = 0o666, *, keep_owner: bool = False) -> None:
    """Writes a hidden file beside `file`, syncs it to disk, and renames it to `file`.

    The hidden file is locked while it is written. A hidden file without a lock is left over from a process that died.

    Args:
        mode: the permission bits of a new file, less those of the umask.
        keep_owner: True to keep the owner, group and mode of an existing `file`, or to fail if that is not permitted.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. `file` stays as it was.
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
class ChecksummedFile:
    """A cache file that begins with the sha256 of the rest. Losing it costs time only, so its methods never raise."""

    path: Path

    def read(self) -> bytes | None:
        """Returns the content, or None if the file is missing, damaged or unreadable."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the cache %s cannot be read: %s", self.path, error.strerror)
            return None
        digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            log.warning("the cache %s is damaged and is ignored", self.path)
            return None
        return content

    def write(self, content: bytes) -> None:
        """Replaces the content. If the folder cannot be written, the file stays as it was."""
        try:
            write_atomically(self.path, hashlib.sha256(content).digest() + content)
        except OSError as error:
            log.info("the cache %s cannot be written: %s", self.path, error.strerror)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
