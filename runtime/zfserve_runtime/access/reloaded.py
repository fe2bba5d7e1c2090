"""What was read from files that may change under a running process: certificates, the list of callers.

Nothing polls: whoever uses the value asks first whether its files are still those that were read.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

_Value = TypeVar("_Value")
_Stamp = tuple[tuple[int, int, int] | None, ...]


class Reloaded(Generic[_Value]):
    """The value of `load`, loaded again when one of `files` has changed; the last good one where that cannot be done.

    Args:
        what: the files in the log, such as "certificate".
        load: raises ValueError, with a sentence, where the files cannot be used. At the first time that passes through.

    Attributes:
        value: the last good one.
    """

    def __init__(self, what: str, files: Sequence[Path], load: Callable[[], _Value]) -> None:
        self._what = what
        self._files = files
        self._load = load
        # Before the files are read: what changes meanwhile is seen by the next look.
        self._stamp = _stamp(files)
        self.value = load()

    def look(self) -> bool:
        """Look at the files, and load them if they changed; whether `value` is another now.

        Files that cannot be used are told of by one line in the log, not by one for each look.
        """
        stamp = _stamp(self._files)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.value = self._load()
        except ValueError as error:
            _log.error(
                "the %s changed and cannot be used; the one before it stays in use",
                self._what,
                extra={"error": str(error)},
            )
            return False
        _log.info("the %s changed and was loaded", self._what)
        return True


def _stamp(files: Sequence[Path]) -> _Stamp:
    """Equal as long as no file was written or replaced. Follows links, which Kubernetes swaps to replace a Secret."""
    return tuple(_stamp_of(file) for file in files)


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
