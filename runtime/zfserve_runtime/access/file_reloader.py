"""Reloads a value when the files that it was read from change: certificates, the file of callers.

No thread polls the files. Code that needs the value calls `reload_if_changed` first.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

_Value = TypeVar("_Value")
_Stamp = tuple[tuple[int, int, int] | None, ...]


class FileReloader(Generic[_Value]):
    """Holds a value that was read from files. If changed files cannot be used, the last good value stays.

    Args:
        what: a name of the files for the log, such as "certificate".
        load: reads the files. Raises a ValueError with a sentence if they cannot be used.

    Attributes:
        value: the last good value.

    Raises:
        ValueError: the files cannot be used at the start.
    """

    def __init__(self, what: str, files: Sequence[Path], load: Callable[[], _Value]) -> None:
        self._what = what
        self._files = files
        self._load = load
        # The stamp is taken before the files are read, so that the next check notices a change during the read.
        self._stamp = _stamp(files)
        self.value = load()

    def reload_if_changed(self) -> bool:
        """Loads the files if they have changed. Returns True if `value` was replaced.

        If changed files cannot be used, the log has one line for that change, not one for each check.
        """
        stamp = _stamp(self._files)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.value = self._load()
        except ValueError as error:
            _log.error(
                "the %s changed and cannot be used; the previous one stays in use",
                self._what,
                extra={"error": str(error)},
            )
            return False
        _log.info("the %s changed and was loaded", self._what)
        return True


def _stamp(files: Sequence[Path]) -> _Stamp:
    """Returns a value that changes when a file is written or replaced.

    Follows links, because Kubernetes replaces a Secret by swapping a link.
    """
    return tuple(_stamp_of(file) for file in files)


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
