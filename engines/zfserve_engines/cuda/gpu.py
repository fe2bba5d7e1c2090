"""Detects the NVIDIA GPU of this machine. The openers of engines, the engine store, and the commands call it."""

import logging
from dataclasses import dataclass
from typing import Any

from zfserve_engines.contract import EngineUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuFacts:
    """The properties of a GPU that decide which engines it can run.

    Attributes:
        name: the GPU's name, such as "NVIDIA L4".
        compute_capability: the GPU's compute capability, such as "8.9".
        driver_version: the version of NVIDIA's driver, such as "580.65.06". Where NVML cannot be loaded, as in a
            container without the driver capability `utility`, it is a text such as "at least CUDA 13.0".
        cuda_version: the newest CUDA version that this driver supports, such as "13.0".
        memory_bytes: the total memory of the GPU in bytes.
    """

    name: str
    compute_capability: str
    driver_version: str
    cuda_version: str
    memory_bytes: int


def detect_gpu(index: int = 0) -> GpuFacts | None:
    """Returns CUDA's device `index`. If it cannot be used, returns None and logs the reason at level DEBUG.

    It creates no CUDA context, so it is cheap and allocates no memory on the GPU.
    """
    try:
        return require_gpu(index)
    except EngineUnavailable as reason:
        log.debug("%s", reason)
        return None


def require_gpu(index: int = 0) -> GpuFacts:
    """Returns CUDA's device `index`. Raises EngineUnavailable where no such GPU can be used."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        raise EngineUnavailable("no GPU can be used: cuda-bindings is not installed") from error

    def ask(answer: tuple[Any, Any]) -> Any:
        status, value = answer
        if status != cudart.cudaError_t.cudaSuccess:
            raise EngineUnavailable(f"no GPU can be used: CUDA returns {status.name}")
        return value

    supported = ask(cudart.cudaDriverGetVersion())
    if supported == 0:
        raise EngineUnavailable("no GPU can be used: no NVIDIA driver is installed")
    count = ask(cudart.cudaGetDeviceCount())
    if index >= count:
        raise EngineUnavailable(f"no GPU can be used: CUDA sees {count} GPUs, and number {index} is wanted")
    properties = ask(cudart.cudaGetDeviceProperties(index))
    cuda_version = f"{supported // 1000}.{supported % 1000 // 10}"
    return GpuFacts(
        name=_text(properties.name),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver_version=_driver_version() or f"at least CUDA {cuda_version}",
        cuda_version=cuda_version,
        memory_bytes=int(properties.totalGlobalMem),
    )


def _driver_version() -> str | None:
    """Returns the driver's version from NVML; None where NVML or its binding (in an old cuda-bindings) is missing."""
    try:
        from cuda.bindings import nvml

        nvml.init_v2()
    except Exception as error:  # NVML, the loader and the import raise unrelated classes
        log.debug("the driver's version is unknown: NVML cannot be used (%s)", error)
        return None
    try:
        return str(nvml.system_get_driver_version())
    finally:
        nvml.shutdown()


def _text(name: bytes | str) -> str:
    """Decodes a C string, which cuda-bindings returns as bytes that are padded with zeros."""
    return name.split(b"\0", 1)[0].decode() if isinstance(name, bytes) else name
