"""Tests the outputs of engines on TensorRT: every batch size, with and without CUDA graphs, and two at a time."""

import gc
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from zfserve_engines.contract import EngineOutputs, EngineUnavailable
from zfserve_engines.cuda.device import free_memory_bytes, start_cuda
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.golden import verify_engine
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_engines.tensorrt.engine import TensorRTEngine, open_engines
from zfserve_engines.tensorrt.library import load_library
from zfserve_engines.tensorrt.plan import LoadedPlan
from zfserve_engines.tensorrt.settings import COMPILED_PRECISIONS, TensorRTLibrary
from zfserve_runtime.atomic_file import ChecksummedFile
from zfserve_runtime.bundle import Bundle, BundleError, ClassEntry, Precision

pytestmark = pytest.mark.gpu

Pixels: TypeAlias = npt.NDArray[np.uint8]
Compile: TypeAlias = Callable[[TensorRTLibrary, Precision], bytes]
Open: TypeAlias = Callable[..., list[TensorRTEngine]]

LIBRARIES: tuple[TensorRTLibrary, ...] = ("tensorrt", "tensorrt-rtx")
EVERY_ENGINE = pytest.mark.parametrize(("kind", "precision"), list(itertools.product(LIBRARIES, COMPILED_PRECISIONS)))
EVERY_LIBRARY = pytest.mark.parametrize("kind", LIBRARIES)

FEATURE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8-symmetric": 0.1}
"""The largest allowed difference to ONNX Runtime on the CPU, as a fraction of the largest feature. It finds gross
errors, such as a row or channel in the wrong place. Their differences are about 1. The golden inputs check the
tolerance of the manifest, which is smaller."""

MEMORY_SLACK_BYTES = 16 * 2**20
"""The tolerance of the memory checks in bytes. The driver may keep memory of a closed engine, and other processes may
allocate memory meanwhile."""


def same(left: EngineOutputs, right: EngineOutputs) -> bool:
    """Returns True if two outputs are equal bit for bit."""
    return bool(
        np.array_equal(left.probabilities, right.probabilities) and np.array_equal(left.features, right.features)
    )


@EVERY_ENGINE
def test_golden_inputs(
    open_tensorrt: Open, gpu: GpuFacts, gpu_bundle: Bundle, kind: TensorRTLibrary, precision: Precision
) -> None:
    (engine,) = open_tensorrt(kind, precision)
    verify_engine(engine, gpu_bundle)
    assert engine.info.runtime == kind
    assert engine.info.device == gpu.name
    assert engine.info.precision == precision


@EVERY_ENGINE
def test_every_batch_size_gives_the_outputs_of_onnx_runtime(
    open_tensorrt: Open, gpu_bundle: Bundle, photos: Pixels, kind: TensorRTLibrary, precision: Precision
) -> None:
    """Sizes 1 to 8 with profiles up to 1, 4 and 8 are on both sides of each profile's limit, and some are padded."""
    (engine,) = open_tensorrt(kind, precision)
    reference = OnnxEngine(gpu_bundle, precision, threads=4, max_batch_size=len(photos), optimised=False)
    expected = reference.run(photos)
    reference.close()
    tolerance = FEATURE_TOLERANCE[precision] * np.abs(expected.features).max()
    for size in range(1, len(photos) + 1):
        for first in range(0, len(photos) - size + 1, size):
            rows = slice(first, first + size)
            outputs = engine.run(photos[rows])
            assert outputs.probabilities.shape == expected.probabilities[rows].shape
            assert outputs.probabilities.dtype == outputs.features.dtype == np.float32
            assert np.abs(outputs.features - expected.features[rows]).max() <= tolerance, (size, first)
            assert outputs.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-3)


@EVERY_ENGINE
def test_a_batch_does_not_depend_on_the_one_before_it(
    open_tensorrt: Open, photos: Pixels, kind: TensorRTLibrary, precision: Precision
) -> None:
    """A batch of three is padded to four with the old content of the buffer."""
    (engine,) = open_tensorrt(kind, precision)
    engine.run(np.zeros_like(photos))
    first = engine.run(photos[:3])
    kept = EngineOutputs(first.probabilities.copy(), first.features.copy())
    engine.run(np.full_like(photos, 255))
    assert same(engine.run(photos[:3]), kept)
    assert same(first, kept), "no later batch may change the outputs of an earlier one"


@EVERY_ENGINE
def test_cuda_graphs_change_no_bit(
    open_tensorrt: Open, photos: Pixels, kind: TensorRTLibrary, precision: Precision
) -> None:
    (with_graphs,) = open_tensorrt(kind, precision, cuda_graphs=True)
    (without,) = open_tensorrt(kind, precision, cuda_graphs=False)
    if kind == "tensorrt":  # the other library captures graphs itself, and does not report it
        assert with_graphs.captured == (1, 2, 3, 4, 6, 8)
    assert without.captured == ()
    for size in range(1, len(photos) + 1):
        for _ in range(2):
            assert same(with_graphs.run(photos[:size]), without.run(photos[:size])), size


@EVERY_LIBRARY
def test_two_concurrent_engines_give_the_outputs_of_one(
    open_tensorrt: Open, photos: Pixels, kind: TensorRTLibrary
) -> None:
    engines = open_tensorrt(kind, "fp32", instances=2)
    expected = [engines[0].run(photos[:size]) for size in range(1, len(photos) + 1)]
    wrong: list[int] = []
    barrier = threading.Barrier(len(engines))

    def work(engine: TensorRTEngine) -> None:
        barrier.wait()
        sizes = (*range(1, len(photos) + 1),) * 25
        wrong.extend(size for size in sizes if not same(engine.run(photos[:size]), expected[size - 1]))

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@EVERY_LIBRARY
def test_closed_engines_free_their_memory_and_instances_share_the_weights(
    compiled: Compile, gpu: GpuFacts, gpu_bundle: Bundle, kind: TensorRTLibrary
) -> None:
    plan_bytes = compiled(kind, "fp32")
    start_cuda()

    def held_bytes(instances: int) -> tuple[int, int]:
        """Returns the GPU memory in bytes that open engines use, and the part still in use after they are closed."""
        before = free_memory_bytes()
        plan = LoadedPlan(plan_bytes, gpu_bundle.manifest, load_library(kind), gpu)
        engines = open_engines(plan, gpu_bundle.manifest, "fp32", max_batch_size=8, instances=instances)
        opened = free_memory_bytes()
        for engine in engines:
            engine.close()
        del plan, engines, engine
        gc.collect()
        return before - opened, before - free_memory_bytes()

    held_bytes(1)  # the first engine loads kernels, which stay loaded
    one, left_by_one = held_bytes(1)
    three, left_by_three = held_bytes(3)
    weights_bytes = gpu_bundle.artefact("fp32").stat().st_size
    assert one > weights_bytes / 2, "an engine uses more memory than half its weights"
    assert left_by_one < MEMORY_SLACK_BYTES
    assert left_by_three < MEMORY_SLACK_BYTES
    assert three < 3 * one


def test_the_runtime_cache_is_written_and_read_back(
    open_tensorrt: Open, photos: Pixels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ChecksummedFile(tmp_path / "kernels.runtime-cache")
    (first,) = open_tensorrt("tensorrt-rtx", "fp32", runtime_cache=cache)
    written = cache.read()
    assert written
    (second,) = open_tensorrt("tensorrt-rtx", "fp32", runtime_cache=cache)
    assert "compiled again" not in caplog.text
    assert same(first.run(photos), second.run(photos))
    cache.write(b"of another card")
    (third,) = open_tensorrt("tensorrt-rtx", "fp32", runtime_cache=cache)
    assert "compiled again" in caplog.text
    assert same(first.run(photos), third.run(photos))
    assert cache.read() != b"of another card"


@EVERY_LIBRARY
def test_an_engine_of_another_bundle_is_refused(
    compiled: Compile, gpu: GpuFacts, gpu_bundle: Bundle, kind: TensorRTLibrary
) -> None:
    three = tuple(ClassEntry(class_id=name, label=name) for name in "abc")
    other = gpu_bundle.manifest.model_copy(update={"classes": three})
    with pytest.raises(BundleError, match=r"probabilities is float32 \(N, 10\), not float32 \(N, 3\)"):
        LoadedPlan(compiled(kind, "fp32"), other, load_library(kind), gpu)


@EVERY_LIBRARY
def test_half_a_plan_is_refused(compiled: Compile, gpu: GpuFacts, gpu_bundle: Bundle, kind: TensorRTLibrary) -> None:
    plan = compiled(kind, "fp32")
    with pytest.raises(EngineUnavailable, match="cannot load the engine"):
        LoadedPlan(plan[: len(plan) // 2], gpu_bundle.manifest, load_library(kind), gpu)


POISON = """
import sys
from pathlib import Path
import numpy as np
import torch
from zfserve_runtime.bundle import load_bundle
from zfserve_runtime.errors import EngineLost
from zfserve_engines.cuda.gpu import detect_gpu
from zfserve_engines.tensorrt.engine import open_engines
from zfserve_engines.tensorrt.library import load_library
from zfserve_engines.tensorrt.plan import LoadedPlan

kind, plan_file, bundle_folder = sys.argv[1:]
bundle = load_bundle(Path(bundle_folder))
plan = LoadedPlan(Path(plan_file).read_bytes(), bundle.manifest, load_library(kind), detect_gpu())
(engine,) = open_engines(plan, bundle.manifest, "fp32", max_batch_size=8, instances=1)
photo = np.zeros((1, 224, 224, 3), np.uint8)
engine.run(photo)
torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]  # out of bounds: a sticky error
for _ in range(2):
    try:
        engine.run(photo)
    except EngineLost:
        print("lost")
engine.close()
print("closed")
"""


@EVERY_LIBRARY
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the test breaks CUDA with PyTorch, which has no CUDA here")
def test_a_sticky_error_is_a_lost_engine(
    compiled: Compile, gpu_bundle: Bundle, tmp_path: Path, kind: TensorRTLibrary
) -> None:
    """Runs in another process, because the process cannot use CUDA afterwards."""
    file = tmp_path / "plan.engine"
    file.write_bytes(compiled(kind, "fp32"))
    ended = subprocess.run(
        [sys.executable, "-u", "-c", POISON, kind, str(file), str(gpu_bundle.folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.stdout.split() == ["lost", "lost", "closed"], ended.stderr
