"""Provides requests, builders without TensorRT, and queries for the tests of the engine store."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from zfserve_engines.cuda.batch_sizes import BatchProfile
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.store.identity import EngineRequest, Host
from zfserve_engines.store.store import EngineStore, NoValidEngine
from zfserve_engines.tensorrt.build_summary import BuildSummary, LayerSummary, TensorSummary
from zfserve_engines.tensorrt.builder import BuiltEngine
from zfserve_engines.tensorrt.settings import BuildSettings

A10 = GpuFacts("NVIDIA A10", "8.6", "580.65.06", "13.0", 24 << 30)
H100 = GpuFacts("NVIDIA H100", "9.0", "580.65.06", "13.0", 80 << 30)
RTX_4090 = GpuFacts("NVIDIA GeForce RTX 4090", "8.9", "591.10", "13.1", 24 << 30)
L4 = GpuFacts("NVIDIA L4", "8.9", "580.65.06", "13.0", 24 << 30)

NOBODY = 65534

TUNED = EngineRequest(
    model="zfnet",
    version="1",
    graph_sha256="ab" * 32,
    tensors=("pixels: uint8 (N, 8, 8, 3)", "probabilities: float32 (N, 3)", "features: float32 (N, 3)"),
    settings=BuildSettings("tensorrt", "fp16"),
    library_version="11.0.0.114",
    host=Host(A10, "Linux", "x86_64"),
)
"""Requests an engine that is built on the GPU that runs it."""

AHEAD = replace(
    TUNED,
    settings=BuildSettings("tensorrt-rtx", "fp16", compute_capabilities=("8.6", "8.9")),
    library_version="1.7.1.116",
    host=Host(None, "Linux", "x86_64"),
)
"""Requests an engine that is built ahead of time, on a machine without a GPU."""


def on_card(request: EngineRequest, gpu: GpuFacts | None) -> EngineRequest:
    """Returns the request for the same engine on a machine with `gpu`, built for that GPU."""
    return with_settings(replace(request, host=replace(request.host, gpu=gpu)), compute_capabilities=())


def with_settings(request: EngineRequest, **changes: Any) -> EngineRequest:
    return replace(request, settings=replace(request.settings, **changes))


class Builder:
    """Returns `plan` as each engine that it builds, and notes the timing cache that each build gets in `given`."""

    def __init__(self, plan: bytes = b"plan", timing_cache: bytes = b"") -> None:
        self.given: list[bytes] = []
        self._built = BuiltEngine(plan, SUMMARY, timing_cache)

    def __call__(self, timing_cache: bytes) -> BuiltEngine:
        self.given.append(timing_cache)
        return self._built


def failing(error: BaseException) -> Callable[[bytes], BuiltEngine]:
    """Returns a build that raises `error`."""

    def build(timing_cache: bytes) -> BuiltEngine:
        raise error

    return build


def quiet(phase: str, done: int, total: int) -> None:
    """Ignores the progress of a build."""


@contextmanager
def unprivileged() -> Iterator[None]:
    """Runs the body as a user for whom file permissions hold. They do not hold for root, who becomes `nobody`."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


SUMMARY = BuildSummary(
    library="TensorRT 11.0.0.114",
    precision="fp16",
    compute_capabilities=(),
    inputs=(TensorSummary("pixels", "uint8", (-1, 8, 8, 3)),),
    outputs=(TensorSummary("features", "float32", (-1, 3)),),
    profiles=(BatchProfile(1, 1), BatchProfile(2, 8)),
    layers=(LayerSummary("conv1", "CONVOLUTION", "float16"),),
    plan_bytes=4,
    seconds=0.5,
    peak_memory_bytes=None,
)


class Server:
    """Stands for an object that uses an engine."""


def names(store: EngineStore) -> set[str]:
    return {file.name for file in store.folder.iterdir()}


def reason(store: EngineStore, request: EngineRequest) -> str | None:
    with pytest.raises(NoValidEngine) as refused:
        store.find(request)
    return refused.value.reason


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
