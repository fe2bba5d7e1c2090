"""Defines the records and the opener of the engines on TensorRT and TensorRT for RTX. `catalogue` lists them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zfserve_runtime.bundle import Precision

from zfserve_engines.contract import Engine, EngineUnavailable
from zfserve_engines.kind import EngineKind
from zfserve_engines.opening import EngineOptions, Phase, Report, Step
from zfserve_engines.tensorrt.library import PACKAGES, Library, load_library
from zfserve_engines.tensorrt.settings import COMPILED_PRECISIONS, BuildSettings, TensorRTLibrary

if TYPE_CHECKING:
    from zfserve_engines.cuda.gpu import GpuFacts
    from zfserve_engines.store.record import StoredEngine


def open_tensorrt(kind: TensorRTLibrary, options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
    """Opens engines that run a compiled engine of the store. If the store has none, compiles it first."""
    from zfserve_engines.cuda.gpu import require_gpu

    gpu = require_gpu()
    library = load_library(kind)
    stored = find_or_compile(library, gpu, options, precision, report)
    report(Step(kind, Phase.LOADING))
    from zfserve_engines.tensorrt.engine import open_engines
    from zfserve_engines.tensorrt.plan import LoadedPlan

    manifest = options.bundle.manifest
    plan = LoadedPlan(stored.plan, manifest, library, gpu, runtime_cache=stored.runtime_cache(gpu))
    stored.hold_lock_for(plan)
    return list(
        open_engines(
            plan,
            manifest,
            precision,
            max_batch_size=options.max_batch_size,
            instances=options.instances,
            on_warming=lambda done, total: report(Step(kind, Phase.WARMING, done / total)),
        )
    )


def find_or_compile(
    library: Library, gpu: GpuFacts, options: EngineOptions, precision: Precision, report: Report
) -> StoredEngine:
    """Returns a compiled engine from the store. Compiles one if none is valid here and takes `max_batch_size` photos.

    Raises:
        EngineUnavailable: no engine is valid, and none can be compiled or `on_invalid` forbids it.
        BundleError: the bundle holds no graph of that precision.
    """
    from zfserve_engines.store.identity import Host, request_engine
    from zfserve_engines.store.store import EngineStore
    from zfserve_engines.tensorrt.builder import BuildFailed, BuiltEngine, build_engine

    settings = BuildSettings(library.kind, precision, choose_batches(options.max_batch_size))
    request = request_engine(options.bundle, settings, library.version, Host.here(gpu), options.max_batch_size)

    def on_progress(phase: str, done: int, total: int) -> None:
        report(Step(library.kind, Phase.COMPILING, done / total))

    def build(timing_cache: bytes) -> BuiltEngine:
        return build_engine(options.bundle.artefact(precision), request.build_settings, on_progress, timing_cache)

    store = EngineStore.of(options.bundle, options.cache)
    try:
        return store.find_or_build(request, build, on_progress, options.on_invalid)
    except BuildFailed as error:
        raise EngineUnavailable(str(error)) from error


def choose_batches(max_batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes to tune for: the default sizes below `max_batch_size`, and `max_batch_size`."""
    return (*(size for size in BuildSettings.batches if size < max_batch_size), max_batch_size)


TENSORRT = EngineKind(
    name="tensorrt",
    on_gpu=True,
    compiled=True,
    precisions=COMPILED_PRECISIONS,
    package=PACKAGES["tensorrt"],
    open=partial(open_tensorrt, "tensorrt"),
)

TENSORRT_RTX = EngineKind(
    name="tensorrt-rtx",
    on_gpu=True,
    compiled=True,
    precisions=COMPILED_PRECISIONS,
    package=PACKAGES["tensorrt-rtx"],
    open=partial(open_tensorrt, "tensorrt-rtx"),
)
