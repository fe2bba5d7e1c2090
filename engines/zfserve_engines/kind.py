"""Defines the record that describes one kind of engine.

The file of each engine defines its record beside its opener, and `catalogue` puts the records in order. A record does
not import its engine's library. The opener imports the library when it is called, so a missing library disables only
its own engines.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from zfserve_protos.extras import not_installed
from zfserve_runtime.bundle import Precision

from zfserve_engines.contract import Engine, EngineName, EngineUnavailable
from zfserve_engines.opening import EngineOptions, Report

Opener = Callable[[EngineOptions, Precision, Report], list[Engine]]
"""Opens `EngineOptions.instances` warm engines that run the graph of that precision.

Raises:
    EngineUnavailable: this machine cannot run this kind of engine.
    BundleError: the bundle lacks what the engine needs, or its graph cannot be loaded.
    EngineFailed: the first runs failed.
"""


@dataclass(frozen=True)
class Package:
    """A Python package that an engine needs.

    Attributes:
        title: the name for people, such as "TensorRT for RTX".
        module: the name to import.
        extra: the extra of pyproject.toml that installs it.
        index: the URL of the package index that has the package; None: PyPI.
    """

    title: str
    module: str
    extra: str
    index: str | None = None

    def load(self) -> Any:
        """Imports the package and returns its module.

        Raises:
            EngineUnavailable: the package is not installed, or cannot be loaded.
        """
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise EngineUnavailable(not_installed(self.title, self.extra, self.index)) from error
        except (ImportError, OSError, RuntimeError) as error:
            # The package is installed, but a library that it links to is missing. NVIDIA's stub on PyPI raises
            # RuntimeError.
            raise EngineUnavailable(f"{self.title} is installed but cannot be loaded: {error}") from error


def always_try(precision: Precision) -> str | None:
    """Returns None: `auto` tries the engine on every machine and with every graph."""
    return None


@dataclass(frozen=True)
class EngineKind:
    """Describes one kind of engine.

    Attributes:
        name: the name in settings, in `zfserve info` and in the log.
        on_gpu: True for an engine on an NVIDIA GPU, False for one on the CPU.
        package: the Python package that the engine needs.
        open: opens warm engines.
        precisions: the precisions of the graphs that the engine runs; by default all precisions.
        compiled: True where TensorRT compiles the graph. TensorRT takes int8 with zero points of 0 only, so the setting
            `int8` then means the graph `int8-symmetric`.
        skip_reason: a function of the graph's precision. It returns one sentence that says why `auto` does not try this
            kind on this machine; None where `auto` tries it.
        by_name_only: one sentence that says why `auto` never tries this kind, so that a user must name it; None where
            `auto` may try it.
    """

    name: EngineName
    on_gpu: bool
    package: Package
    open: Opener
    precisions: tuple[Precision, ...] = get_args(Precision)
    compiled: bool = False
    skip_reason: Callable[[Precision], str | None] = always_try
    by_name_only: str | None = None
