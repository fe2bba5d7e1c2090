"""Which engines' libraries are installed: what is missing is skipped, and what fails after that is a failure."""

import ctypes
import importlib
from contextlib import suppress
from typing import get_args

import pytest
from zfserve_runtime.engine import EngineUnavailable
from zfserve_runtime.engine_catalogue import EngineName
from zfserve_runtime.onnx_providers import CudaProvider, TensorRTProvider
from zfserve_runtime.onnx_session import require_provider
from zfserve_runtime.tensorrt_library import load_library
from zfserve_runtime.tensorrt_settings import TensorRTLibrary


def require_library(name: EngineName) -> None:
    """Skip where the library of an engine for GPUs is not installed."""
    try:
        for kind in get_args(TensorRTLibrary):
            if kind == name:
                load_library(kind)
                return
        require_provider(TensorRTProvider() if name == "onnx-tensorrt" else CudaProvider())
    except EngineUnavailable as reason:
        pytest.skip(str(reason))
    if name == "onnx-tensorrt":
        with suppress(ImportError):
            importlib.import_module("tensorrt")
        try:
            ctypes.CDLL("libnvinfer.so.10")
        except OSError as reason:
            pytest.skip(f"TensorRT 10 is not installed: {reason}")
