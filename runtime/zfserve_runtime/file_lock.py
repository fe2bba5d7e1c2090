"""Locks files between processes, with flock(2). The engine store and the file of callers use it.

The kernel releases a lock when its process ends, however it ends, so no lock is ever stale.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def exclusive_lock(file: Path, on_wait: Callable[[], None] | None) -> Iterator[None]:
    """Creates the lock file `file` and holds it exclusively until the block ends. Then removes it.

    Args:
        on_wait: a function that is called before each wait for another process that holds the file. None: fail, and do
            not wait.

    Raises:
        BlockingIOError: another process holds the file, and `on_wait` is None.
        OSError: the file cannot be created.
    """
    descriptor = _acquire(file, on_wait)
    try:
        yield
    finally:
        with suppress(OSError):  # a lock file that remains does no harm
            file.unlink()  # it is still locked here, so a waiting process notices the removal and creates a new one
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Returns True if a process holds `file` exclusively. Writes nothing."""
    return _conflicts(file, fcntl.LOCK_SH)


def is_in_use(file: Path) -> bool:
    """Returns True if a process holds `file`, exclusively or shared. Writes nothing, so over NFS it is always False."""
    return _conflicts(file, fcntl.LOCK_EX)


@contextmanager
def shared_lock(file: Path) -> Iterator[None]:
    """Marks an existing file as in use until the block ends. Several processes can do so at the same time.

    It needs no permission to write.

    Raises:
        OSError: the file is gone.
    """
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def remove_unless_in_use(file: Path) -> bool:
    """Removes a file unless it is marked as in use. Returns True if the file is gone.

    Raises:
        OSError: the file may not be removed.
    """
    try:
        descriptor = os.open(file, os.O_RDWR)  # for writing, because NFS grants an exclusive lock to writers only
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        file.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _conflicts(file: Path, operation: int) -> bool:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _acquire(file: Path, on_wait: Callable[[], None] | None) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, on_wait)
            if _is_same_file(file, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the last holder has removed this file, so a lock on it excludes nobody


def _lock(descriptor: int, on_wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is None:
            raise
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_same_file(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
