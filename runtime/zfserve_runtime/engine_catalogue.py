"""Every kind of engine by its name, each with what it takes to open one. Used by the server's choice of engine.

An opener imports its library only when it is called, so that naming an engine costs nothing and a library that is not
installed keeps only its own engine out.
"""

import enum
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zfserve_runtime.bundle import Bundle, Precision
from zfserve_runtime.engine import Engine

EngineName = Literal["tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda", "openvino", "onnx-cpu"]


class Phase(enum.StrEnum):
    """What the start of a service is at. An engine that is already compiled, or never is, skips the first."""

    COMPILING = enum.auto()
    LOADING = enum.auto()
    WARMING = enum.auto()
    VERIFYING = enum.auto()
    READY = enum.auto()


@dataclass(frozen=True)
class Step:
    """How far the start is.

    Attributes:
        engine: the one being opened.
        share: of the phase that is done, in [0, 1]; None where that is not known.
    """

    engine: EngineName
    phase: Phase
    share: float | None = None


Report = Callable[[Step], None]
"""Told of every step, in the opener's thread. What it raises ends the opening."""


@dataclass(frozen=True)
class Opening:
    """What to open, whichever engine it is.

    Attributes:
        instances: that share the device side by side.
        threads: of the CPU that all instances may use together.
        cache: the folder of compiled engines; None: `engines` in the bundle's.
        compile_missing: compile an engine where the cache holds none that may be used.
    """

    bundle: Bundle
    max_batch_size: int
    threads: int
    instances: int
    cache: Path | None
    compile_missing: bool


Opener = Callable[[Opening, Precision, Report], list[Engine]]
"""Opens `Opening.instances` warm engines that run the graph of that precision.

Raises:
    EngineUnavailable: this kind cannot be had here.
    BundleError: the bundle lacks what it needs, or its graph cannot be loaded.
    EngineFailed: the first runs failed.
"""


def open_onnx_cpu(opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    from zfserve_runtime.onnx_engine import CPU, OnnxEngine

    def open_one() -> Engine:
        return OnnxEngine(
            opening.bundle,
            precision,
            threads=max(1, opening.threads // opening.instances),
            max_batch_size=opening.max_batch_size,
            providers=(CPU,),
        )

    report(Step("onnx-cpu", Phase.LOADING))
    return _several(opening.instances, open_one)


def _several(count: int, open_one: Callable[[], Engine]) -> list[Engine]:
    """All of them, or none left open."""
    with ExitStack() as stack:
        engines = []
        for _ in range(count):
            engines.append(engine := open_one())
            stack.callback(engine.close)
        stack.pop_all()
        return engines


OPENERS: Mapping[EngineName, Opener] = {
    "onnx-cpu": open_onnx_cpu,
}
