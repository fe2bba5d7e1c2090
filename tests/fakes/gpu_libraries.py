"""Which engines for GPUs can be had: what is missing is skipped, and what fails after that is a failure."""

from typing import get_args

import pytest
from zfserve_engines.contract import EngineName, EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.onnx.providers import CudaProvider, TensorRTProvider
from zfserve_engines.onnx.session import require_libraries
from zfserve_engines.tensorrt.library import Library, load_library
from zfserve_engines.tensorrt.settings import TensorRTLibrary


def require_library(kind: TensorRTLibrary, gpu: GpuFacts) -> Library:
    """TensorRT; skips where it is not installed or does not know the card."""
    try:
        library = load_library(kind)
    except EngineUnavailable as error:
        pytest.skip(str(error))
    if library.targets and gpu.compute_capability not in library.targets:
        pytest.skip(f"{library} has no target {gpu.compute_capability} ({gpu.name})")
    return library


def require_engine(name: EngineName, gpu: GpuFacts) -> None:
    """Skip where the libraries of an engine for GPUs are not installed, or do not know the card."""
    for kind in get_args(TensorRTLibrary):
        if kind == name:
            require_library(kind, gpu)
            return
    try:
        require_libraries(TensorRTProvider() if name == "onnx-tensorrt" else CudaProvider())
    except EngineUnavailable as error:
        pytest.skip(str(error))
