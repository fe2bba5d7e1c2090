"""Tests every kind of engine on a GPU, opened as the server opens it."""

import itertools
from pathlib import Path

import pytest
import torch
from fakes.gpu_libraries import require_engine
from zfserve_engines.catalogue import ENGINE_KINDS, engine_kinds
from zfserve_engines.contract import EngineName
from zfserve_engines.cuda.gpu import GpuFacts, detect_gpu
from zfserve_engines.golden import verify_engine
from zfserve_engines.opening import EngineOptions, Step
from zfserve_runtime.bundle import Bundle, Precision

pytestmark = pytest.mark.gpu

ON_GPU = [kind.name for kind in engine_kinds(on_gpu=True)]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-symmetric")


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize(("name", "precision"), list(itertools.product(ON_GPU, PRECISIONS)))
def test_it_gives_the_golden_outputs(
    gpu: GpuFacts,
    gpu_bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
    name: EngineName,
    precision: Precision,
    instances: int,
) -> None:
    cache = tmp_path_factory.getbasetemp() / "engines"  # shared by all tests, so that each engine is compiled once
    options = EngineOptions(gpu_bundle, 8, threads=4, instances=instances, cache=cache)
    steps: list[Step] = []
    require_engine(name, gpu)
    engines = ENGINE_KINDS[name].open(options, precision, steps.append)
    try:
        assert len(engines) == instances
        for engine in engines:
            assert engine.info.precision == precision
            assert engine.info.device == gpu.name
            verify_engine(engine, gpu_bundle)
    finally:
        for engine in engines:
            engine.close()
    assert {step.engine for step in steps} == {name}


def test_the_gpu_is_described_as_pytorch_describes_it(gpu: GpuFacts) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA; install one with make TORCH_INDEX=...")
    found = torch.cuda.get_device_properties(0)
    assert gpu.name == found.name
    assert gpu.compute_capability == f"{found.major}.{found.minor}"
    assert gpu.memory_bytes == pytest.approx(found.total_memory, rel=0.05)
    assert detect_gpu(torch.cuda.device_count()) is None


def test_the_driver_is_the_one_that_linux_has_loaded(gpu: GpuFacts) -> None:
    loaded = Path("/proc/driver/nvidia/version")
    if not loaded.is_file():
        pytest.skip("this system does not say which driver it has loaded")
    assert gpu.driver_version in loaded.read_text()
