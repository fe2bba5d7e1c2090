"""Locks between processes, by flock(2). The kernel lets go of them when a process ends, however it ends: none is ever
stale. Used by `engine_store`."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def exclusive_lock(file: Path, on_wait: Callable[[], None] | None) -> Iterator[None]:
    """Hold `file`, made for the purpose, alone until the block ends. The file is then removed.

    Args:
        on_wait: called where another process holds it, before each wait; None: do not wait.

    Raises:
        BlockingIOError: another process holds it, and it is not to be waited for.
        OSError: the file cannot be made.
    """
    descriptor = _acquire(file, on_wait)
    try:
        yield
    finally:
        with suppress(OSError):  # a lock file that stays is in nobody's way
            file.unlink()  # while it is held: whoever waits for it sees that it is gone, and makes another
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Whether a process holds `file` alone. Writes nothing."""
    return _meets_another(file, fcntl.LOCK_SH)


def is_in_use(file: Path) -> bool:
    """Whether a process holds `file` at all. Writes nothing, and so sees nothing over NFS."""
    return _meets_another(file, fcntl.LOCK_EX)


@contextmanager
def shared_lock(file: Path) -> Iterator[None]:
    """Mark an existing file as in use until the block ends, beside any number of others. Needs no right to write.

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
    """Remove a file, unless it is marked as in use; whether it is gone.

    Raises:
        OSError: it may not be removed.
    """
    try:
        descriptor = os.open(file, os.O_RDWR)  # to write, because NFS grants an exclusive lock to writers only
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


def _meets_another(file: Path, operation: int) -> bool:
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
            if _is_still_at(file, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder has removed the file, so that this lock excludes nobody


def _lock(descriptor: int, on_wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is None:
            raise
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_still_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
