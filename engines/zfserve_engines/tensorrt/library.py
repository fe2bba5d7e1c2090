"""Loads TensorRT (`tensorrt`) or TensorRT for RTX (`tensorrt_rtx`), two libraries of NVIDIA with one API.

`builder`, the opener in `kinds` and the commands call it. No other module imports these libraries, so they need not be
installed for other engines. `builder.configure` lists how they differ, and how TensorRT 10 and 11 differ.
"""

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from zfserve_engines.kind import Package
from zfserve_engines.tensorrt.settings import TensorRTLibrary

log = logging.getLogger(__name__)

PACKAGES: dict[TensorRTLibrary, Package] = {
    "tensorrt": Package("TensorRT", "tensorrt", "tensorrt", "https://pypi.nvidia.com"),
    "tensorrt-rtx": Package("TensorRT for RTX", "tensorrt_rtx", "tensorrt-rtx"),
}

_TURING = "7.5"
_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,  # every step of a build; VERBOSE messages, about every kernel, are dropped
}


class LogForwarder:
    """Implements the methods of TensorRT's `ILogger`. It forwards messages to `logging`.

    `_make_logger` derives a class from both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    @contextmanager
    def collect_errors(self) -> Iterator[list[str]]:
        """Collects the errors that this thread logs, and still logs them.

        TensorRT's `IErrorRecorder` does the same, but it crashes in TensorRT for RTX 1.7 when its builder is freed.
        """
        self._here.errors = errors = list[str]()
        try:
            yield errors
        finally:
            del self._here.errors

    def log(self, severity: Any, message: str) -> None:
        """Logs a message. TensorRT calls it."""
        level = _LEVELS.get(severity.name)
        if level is None:
            return
        log.log(level, "%s", message)
        if level == logging.ERROR and hasattr(self._here, "errors"):
            self._here.errors.append(message)


@dataclass(frozen=True)
class Library:
    """Holds one of the two libraries, ready to use.

    Attributes:
        kind: the name of the library.
        module: the imported module.
        version: the version of the library, such as "1.7.1.116".
        logger: a `LogForwarder` that is also an `ILogger`, for every builder, parser and runtime.
    """

    kind: TensorRTLibrary
    module: Any = field(repr=False)
    version: str
    logger: Any = field(repr=False)

    def __str__(self) -> str:
        return f"{PACKAGES[self.kind].title} {self.version}"

    @property
    def targets(self) -> tuple[str, ...]:
        """The compute capabilities, ascending, that it can build for without such a GPU. Empty for `tensorrt`."""
        if self.kind == "tensorrt":
            return ()
        members = (name.removeprefix("SM") for name in self.module.ComputeCapability.__members__ if name[:2] == "SM")
        return tuple(f"{number[:-1]}.{number[-1]}" for number in sorted(members, key=int))

    @property
    def default_targets(self) -> tuple[str, ...]:
        """The targets from Ampere on. Turing is left out, because it lacks kernels for our fp32 layers."""
        return tuple(target for target in self.targets if target != _TURING)


@functools.cache  # a library keeps the first logger of the process, and crashes when it is freed
def load_library(kind: TensorRTLibrary) -> Library:
    """Loads a library. Raises EngineUnavailable if it is not installed or cannot be loaded."""
    module = PACKAGES[kind].load()
    return Library(kind, module, module.__version__, _make_logger(module))


def _make_logger(module: Any) -> Any:
    class Logger(LogForwarder, module.ILogger):  # type: ignore[misc]
        pass

    return Logger()
