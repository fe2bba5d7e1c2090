"""Tests ONNX Runtime's providers on a GPU."""

from pathlib import Path

import numpy as np
import pytest
from fakes.gpu_libraries import require_engine
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.golden import load_golden, verify_engine
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_engines.onnx.providers import CudaProvider, GpuProvider, TensorRTProvider
from zfserve_runtime.bundle import Bundle

pytestmark = pytest.mark.gpu

LARGEST = 8


def open_engine(bundle: Bundle, provider: GpuProvider, gpu: GpuFacts) -> OnnxEngine:
    require_engine("onnx-cuda" if isinstance(provider, CudaProvider) else "onnx-tensorrt", gpu)
    return OnnxEngine(bundle, "fp32", threads=1, max_batch_size=LARGEST, provider=provider)


@pytest.mark.parametrize("provider", [CudaProvider(), TensorRTProvider()])
def test_every_batch_size_gives_the_outputs_of_the_cpu(
    gpu_bundle: Bundle, gpu: GpuFacts, provider: GpuProvider
) -> None:
    """Some sizes are padded. Each row of the output belongs to its row of the input."""
    engine = open_engine(gpu_bundle, provider, gpu)
    assert engine.info.device == gpu.name
    golden = load_golden(gpu_bundle)
    tolerance = gpu_bundle.manifest.artefacts["fp32"].golden_tolerance
    for size in range(1, LARGEST + 1):
        found = engine.run(golden.pixels[:size]).probabilities
        np.testing.assert_allclose(found, golden.probabilities["fp32"][:size], atol=tolerance)
    engine.close()


def test_without_tf32_cuda_computes_what_the_cpu_computes(gpu_bundle: Bundle, gpu: GpuFacts) -> None:
    engine = open_engine(gpu_bundle, CudaProvider(), gpu)
    golden = load_golden(gpu_bundle)
    found = engine.run(golden.pixels[:LARGEST]).probabilities
    np.testing.assert_allclose(found, golden.probabilities["fp32"][:LARGEST], atol=1e-5)
    engine.close()


def test_a_tensorrt_engine_is_stored_and_used_again(gpu_bundle: Bundle, gpu: GpuFacts, tmp_path: Path) -> None:
    def engines() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.engine")}

    open_engine(gpu_bundle, TensorRTProvider(tmp_path), gpu).close()
    kept = engines()
    assert len(kept) == 1
    again = open_engine(gpu_bundle, TensorRTProvider(tmp_path), gpu)
    verify_engine(again, gpu_bundle)
    again.close()
    assert engines() == kept
