"""NVIDIA's two libraries with one API, loaded by name: `tensorrt`, and `tensorrt_rtx`, TensorRT for RTX.

Called by `tensorrt_builder` and by the engines that run what it builds. Neither library is imported anywhere else, so
whoever uses none of them needs none installed. Where the two differ, or TensorRT 10 from 11, is written in
`tensorrt_builder.configure`.
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
    "INFO": logging.DEBUG,  # every step of a build; VERBOSE, about every kernel, is left out
}


class MessageLog:
    """The method of TensorRT's `ILogger`, passing messages on to `logging`; `_make_logger` derives a class of both."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    @contextmanager
    def collect_errors(self) -> Iterator[list[str]]:
        """Gather what is logged as an error from this thread, beside logging it.

        An `IErrorRecorder` is made for this, but with TensorRT for RTX 1.7 it crashes when its builder is freed.
        """
        self._here.errors = errors = list[str]()
        try:
            yield errors
        finally:
            del self._here.errors

    def log(self, severity: Any, message: str) -> None:
        level = _LEVELS.get(severity.name)
        if level is None:
            return
        log.log(level, "%s", message)
        if level == logging.ERROR and hasattr(self._here, "errors"):
            self._here.errors.append(message)


@dataclass(frozen=True)
class Library:
    """One of the two, ready to use.

    Attributes:
        module: what its import gives.
        version: such as "1.7.1.116".
        logger: a `MessageLog` that is an `ILogger` too; for every builder, parser and runtime.
    """

    kind: TensorRTLibrary
    module: Any = field(repr=False)
    version: str
    logger: Any = field(repr=False)

    def __str__(self) -> str:
        return f"{PACKAGES[self.kind].title} {self.version}"

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that it builds for without such a card, ascending; none for `tensorrt`."""
        if self.kind == "tensorrt":
            return ()
        members = (name.removeprefix("SM") for name in self.module.ComputeCapability.__members__ if name[:2] == "SM")
        return tuple(f"{number[:-1]}.{number[-1]}" for number in sorted(members, key=int))

    @property
    def default_targets(self) -> tuple[str, ...]:
        """Those from Ampere on. For Turing it builds on request only: it has no kernels there for our fp32 layers."""
        return tuple(target for target in self.targets if target != _TURING)


@functools.cache  # both keep one logger per process, the first they are given, and crash once that is collected
def load_library(kind: TensorRTLibrary) -> Library:
    """Raises EngineUnavailable where it is not installed or cannot be loaded."""
    module = PACKAGES[kind].load()
    return Library(kind, module, module.__version__, _make_logger(module))


def _make_logger(module: Any) -> Any:
    class Logger(MessageLog, module.ILogger):  # type: ignore[misc]
        pass

    return Logger()
