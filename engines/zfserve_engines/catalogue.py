"""Every kind of engine by its name, each with what it takes to open one. Used by the server's choice of engine.

An opener imports its library only when it is called, so that naming an engine costs nothing and a library that is not
installed keeps only its own engine out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zfserve_runtime.bundle import Bundle, Precision

from zfserve_engines.contract import Engine, EngineUnavailable
from zfserve_engines.tensorrt.settings import BuildSettings, TensorRTLibrary

if TYPE_CHECKING:
    from zfserve_engines.cuda.gpu import GpuFacts
    from zfserve_engines.onnx.providers import OnnxProvider
    from zfserve_engines.store.record import StoredEngine
    from zfserve_engines.tensorrt.library import Library

EngineName = Literal["tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda", "openvino", "openvino-bf16", "onnx-cpu"]

OnRefusal = Literal["rebuild", "refuse"]
"""What to do where there is a compiled engine of the model that must not be used: stale, foreign or corrupted."""


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
    """

    bundle: Bundle
    max_batch_size: int
    threads: int
    instances: int
    cache: Path | None
    on_refusal: OnRefusal

    @property
    def threads_each(self) -> int:
        """Of one instance."""
        return max(1, self.threads // self.instances)


Opener = Callable[[Opening, Precision, Report], list[Engine]]
"""Opens `Opening.instances` warm engines that run the graph of that precision.

Raises:
    EngineUnavailable: this kind cannot be had here.
    BundleError: the bundle lacks what it needs, or its graph cannot be loaded.
    EngineFailed: the first runs failed.
"""


def open_tensorrt(library: TensorRTLibrary, opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    """On either of NVIDIA's libraries, with an engine of the store, which compiles it where it has none."""
    from zfserve_engines.cuda.gpu import require_gpu
    from zfserve_engines.tensorrt.library import load_library

    gpu = require_gpu()
    loaded = load_library(library)
    stored = obtain_compiled(loaded, gpu, opening, precision, report)
    report(Step(library, Phase.LOADING))
    from zfserve_engines.tensorrt.engine import open_engines
    from zfserve_engines.tensorrt.plan import LoadedPlan

    manifest = opening.bundle.manifest
    plan = LoadedPlan(stored.plan, manifest, loaded, gpu, runtime_cache=stored.runtime_cache(gpu))
    stored.hold_for(plan)
    return list(
        open_engines(
            plan,
            manifest,
            precision,
            max_batch_size=opening.max_batch_size,
            instances=opening.instances,
            on_warming=lambda done, total: report(Step(library, Phase.WARMING, done / total)),
        )
    )


def obtain_compiled(
    library: Library, gpu: GpuFacts, opening: Opening, precision: Precision, report: Report
) -> StoredEngine:
    """From the store; compiled now where it has none for this card that is large enough.

    Raises:
        EngineUnavailable: one would have to be compiled and cannot, or must not be used and is not to be rebuilt.
        BundleError: the bundle holds no graph of that precision.
    """
    from zfserve_engines.store.identity import Host, request_engine
    from zfserve_engines.store.store import EngineStore
    from zfserve_engines.tensorrt.builder import BuildFailed, BuiltEngine, build_engine

    settings = BuildSettings(library.kind, precision, choose_batches(opening.max_batch_size))
    request = request_engine(opening.bundle, settings, library.version, Host.here(gpu), opening.max_batch_size)

    def on_progress(phase: str, done: int, total: int) -> None:
        report(Step(library.kind, Phase.COMPILING, done / total))

    def build(timing_cache: bytes) -> BuiltEngine:
        return build_engine(opening.bundle.artefact(precision), request.build_settings, on_progress, timing_cache)

    store = EngineStore.of(opening.bundle, opening.cache)
    try:
        return store.obtain(request, build, on_progress, opening.on_refusal)
    except BuildFailed as error:
        raise EngineUnavailable(str(error)) from error


def choose_batches(max_batch_size: int) -> tuple[int, ...]:
    """What to tune an engine for that takes up to `max_batch_size`: that, and those below it that are usual."""
    return (*(size for size in BuildSettings.batches if size < max_batch_size), max_batch_size)


def open_onnx_tensorrt(opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    from zfserve_engines.onnx.providers import TensorRTProvider
    from zfserve_engines.store.store import EngineStore

    provider = TensorRTProvider(EngineStore.of(opening.bundle, opening.cache).folder)
    # Whether it compiles or finds the engine in its cache, ONNX Runtime does not tell.
    return _open_onnx(Step("onnx-tensorrt", Phase.COMPILING), provider, opening, precision, report)


def open_onnx_cuda(opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    from zfserve_engines.onnx.providers import CudaProvider

    return _open_onnx(Step("onnx-cuda", Phase.LOADING), CudaProvider(), opening, precision, report)


def open_onnx_cpu(opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    from zfserve_engines.onnx.providers import CPU

    return _open_onnx(Step("onnx-cpu", Phase.LOADING), CPU, opening, precision, report)


def _open_onnx(
    first: Step, provider: OnnxProvider, opening: Opening, precision: Precision, report: Report
) -> list[Engine]:
    from zfserve_engines.onnx.engine import OnnxEngine
    from zfserve_engines.onnx.session import require_libraries

    require_libraries(provider)
    return _several(first, partial(OnnxEngine, provider=provider), opening, precision, report)


def open_openvino(opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    from zfserve_engines.openvino.engine import OpenVinoEngine

    return _several(Step("openvino", Phase.LOADING), OpenVinoEngine, opening, precision, report)


def open_openvino_bf16(opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    """The fp32 graph, computed in bfloat16."""
    from zfserve_engines.openvino.engine import OpenVinoEngine

    if precision != "fp32":
        raise EngineUnavailable(
            f"it runs the fp32 graph, in bf16; leave --precision out, or take openvino for {precision}"
        )
    new_engine = partial(OpenVinoEngine, arithmetic="bf16")
    return _several(Step("openvino-bf16", Phase.LOADING), new_engine, opening, precision, report)


def _several(
    first: Step, new_engine: Callable[..., Engine], opening: Opening, precision: Precision, report: Report
) -> list[Engine]:
    """All instances, or none left open; `first` is where their start begins."""
    report(first)
    with ExitStack() as stack:
        engines = []
        for _ in range(opening.instances):
            engine = new_engine(
                opening.bundle,
                precision,
                threads=opening.threads_each,
                max_batch_size=opening.max_batch_size,
                on_warming=lambda done, total: report(Step(first.engine, Phase.WARMING, done / total)),
            )
            engines.append(engine)
            stack.callback(engine.close)
        stack.pop_all()
        return engines


OPENERS: Mapping[EngineName, Opener] = {
    "tensorrt": partial(open_tensorrt, "tensorrt"),
    "tensorrt-rtx": partial(open_tensorrt, "tensorrt-rtx"),
    "onnx-tensorrt": open_onnx_tensorrt,
    "onnx-cuda": open_onnx_cuda,
    "openvino": open_openvino,
    "openvino-bf16": open_openvino_bf16,
    "onnx-cpu": open_onnx_cpu,
}
