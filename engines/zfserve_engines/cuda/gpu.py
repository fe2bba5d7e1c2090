"""Which NVIDIA GPU is here. Asked by the choice of engine, by the engine store for its key, and by tests/gpu."""

import logging
from dataclasses import dataclass
from typing import Any

from zfserve_engines.contract import EngineUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuFacts:
    """What decides which engines a card runs.

    Attributes:
        name: such as "NVIDIA L4".
        compute_capability: such as "8.9".
        driver_version: NVIDIA's own, such as "580.65.06"; "at least CUDA 13.0" where NVML cannot be loaded, as in a
            container without the driver capability `utility`.
        cuda_version: the newest CUDA this driver supports, such as "13.0".
        memory_bytes: of the whole card.
    """

    name: str
    compute_capability: str
    driver_version: str
    cuda_version: str
    memory_bytes: int


def detect_gpu(index: int = 0) -> GpuFacts | None:
    """The card that CUDA numbers `index`; None, with the reason logged at debug, where there is none to use.

    Creates no CUDA context: it is cheap, and leaves no memory claimed on the card.
    """
    try:
        return require_gpu(index)
    except EngineUnavailable as reason:
        log.debug("%s", reason)
        return None


def require_gpu(index: int = 0) -> GpuFacts:
    """As `detect_gpu`, but raises EngineUnavailable where there is no card to use."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        raise EngineUnavailable("there is no way to a GPU: cuda-bindings is not installed") from error

    def ask(answer: tuple[Any, Any]) -> Any:
        status, value = answer
        if status != cudart.cudaError_t.cudaSuccess:
            raise EngineUnavailable(f"there is no GPU to use: CUDA answers {status.name}")
        return value

    supported = ask(cudart.cudaDriverGetVersion())
    if supported == 0:
        raise EngineUnavailable("there is no GPU to use: no NVIDIA driver is installed")
    count = ask(cudart.cudaGetDeviceCount())
    if index >= count:
        raise EngineUnavailable(f"there is no GPU to use: CUDA sees {count} cards, and number {index} was asked for")
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
    """As NVML tells it; None where the library, or its binding in an old cuda-bindings, is missing."""
    try:
        from cuda.bindings import nvml

        nvml.init_v2()
    except Exception as error:  # NVML's, the loader's and the import's errors have no common class below Exception
        log.debug("the driver's version is unknown: NVML cannot be used (%s)", error)
        return None
    try:
        return str(nvml.system_get_driver_version())
    finally:
        nvml.shutdown()


def _text(name: bytes | str) -> str:
    """A C string that cuda-bindings gives as bytes, padded with zeros."""
    return name.split(b"\0", 1)[0].decode() if isinstance(name, bytes) else name
