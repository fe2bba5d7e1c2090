"""Provides the fixtures for the tests that need a GPU. Each test has the marker `gpu` and is skipped on a machine
without a GPU."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fakes.gpu_libraries import require_library
from processes import zfserve
from zfserve_engines.cuda.gpu import GpuFacts, detect_gpu
from zfserve_engines.golden import load_golden
from zfserve_engines.tensorrt.builder import build_engine
from zfserve_engines.tensorrt.engine import TensorRTEngine, open_engines
from zfserve_engines.tensorrt.library import load_library
from zfserve_engines.tensorrt.plan import LoadedPlan
from zfserve_engines.tensorrt.settings import BuildSettings, TensorRTLibrary
from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.atomic_file import ChecksummedFile
from zfserve_runtime.bundle import Bundle, Precision, load_bundle

Pixels: TypeAlias = npt.NDArray[np.uint8]

SAMPLES = Path(__file__).parent.parent.parent / "samples"
CLASSES = tuple("abcdefghij")
PROFILES = (1, 4, 8)
"""The largest batch of each optimisation profile that these tests compile."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if detect_gpu() is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no NVIDIA GPU here (detect_gpu() is None)"))


@pytest.fixture(scope="session")
def gpu() -> GpuFacts:
    facts = detect_gpu()
    assert facts is not None
    return facts


@pytest.fixture(scope="session")
def gpu_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Returns the figure-3 network with random weights and a narrow head, in every precision.

    Its logits differ by about 1 between photos, so a wrong output is far from the correct one.
    """
    network = build_network(NetworkSpec("zfnet-fig3", len(CLASSES), 64), torch.Generator().manual_seed(0)).eval()
    file = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_checkpoint(Checkpoint(network, CLASSES, CLASSES, Preprocessing()), file)
    folder = tmp_path_factory.mktemp("models")
    exported = zfserve("export", file, "--output", folder, "--name", "random", "--calibration", SAMPLES, timeout_s=600)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    return load_bundle(folder / "random")


@pytest.fixture(scope="session")
def photos(gpu_bundle: Bundle) -> Pixels:
    """Returns eight different images, uint8 (8, 224, 224, 3): the golden photos and their mirror images."""
    golden = load_golden(gpu_bundle).pixels
    return np.concatenate([golden, golden[:, :, ::-1], golden[:, ::-1]])[: PROFILES[-1]]


Compile: TypeAlias = Callable[[TensorRTLibrary, Precision], bytes]


@pytest.fixture(scope="session")
def compiled(gpu: GpuFacts, gpu_bundle: Bundle) -> Compile:
    """Compiles each engine once for this GPU. Skips where the library is missing or does not support the GPU."""
    plans: dict[tuple[TensorRTLibrary, Precision], bytes] = {}

    def compile_once(kind: TensorRTLibrary, precision: Precision) -> bytes:
        library = require_library(kind, gpu)
        if (kind, precision) not in plans:
            targets = (gpu.compute_capability,) if library.targets else ()
            settings = BuildSettings(kind, precision, PROFILES, targets)
            plans[kind, precision] = build_engine(gpu_bundle.artefact(precision), settings).plan
        return plans[kind, precision]

    return compile_once


class Open(Protocol):
    def __call__(
        self,
        kind: TensorRTLibrary,
        precision: Precision,
        *,
        instances: int = 1,
        cuda_graphs: bool = True,
        runtime_cache: ChecksummedFile | None = None,
    ) -> list[TensorRTEngine]: ...


@pytest.fixture
def open_tensorrt(gpu: GpuFacts, gpu_bundle: Bundle, compiled: Compile) -> Iterator[Open]:
    """Opens engines that share one plan, and closes them when the test ends."""
    with ExitStack() as stack:

        def open_engines_of(
            kind: TensorRTLibrary,
            precision: Precision,
            *,
            instances: int = 1,
            cuda_graphs: bool = True,
            runtime_cache: ChecksummedFile | None = None,
        ) -> list[TensorRTEngine]:
            plan = LoadedPlan(
                compiled(kind, precision),
                gpu_bundle.manifest,
                load_library(kind),
                gpu,
                runtime_cache=runtime_cache,
                cuda_graphs=cuda_graphs,
            )
            engines = open_engines(
                plan, gpu_bundle.manifest, precision, max_batch_size=PROFILES[-1], instances=instances
            )
            for engine in engines:
                stack.callback(engine.close)
            return engines

        yield open_engines_of
