"""Skips the tests of GPU engines whose libraries are missing. An error after that fails the test."""

from typing import get_args

import pytest
from zfserve_engines.contract import EngineName, EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.onnx.providers import CudaProvider, TensorRTProvider
from zfserve_engines.onnx.session import require_libraries
from zfserve_engines.tensorrt.library import Library, load_library
from zfserve_engines.tensorrt.settings import TensorRTLibrary


def require_library(kind: TensorRTLibrary, gpu: GpuFacts) -> Library:
    """Returns TensorRT. Skips the test if it is not installed or does not support the GPU."""
    try:
        library = load_library(kind)
    except EngineUnavailable as error:
        pytest.skip(str(error))
    if library.targets and gpu.compute_capability not in library.targets:
        pytest.skip(f"{library} has no target {gpu.compute_capability} ({gpu.name})")
    return library


def require_engine(name: EngineName, gpu: GpuFacts) -> None:
    """Skips the test if the engine's libraries are not installed or do not support the GPU."""
    for kind in get_args(TensorRTLibrary):
        if kind == name:
            require_library(kind, gpu)
            return
    try:
        require_libraries(TensorRTProvider() if name == "onnx-tensorrt" else CudaProvider())
    except EngineUnavailable as error:
        pytest.skip(str(error))
