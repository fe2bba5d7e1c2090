"""What ONNX Runtime is told about each of its execution providers, for `onnx_engine`. Imports no ONNX Runtime.

Options: onnxruntime.ai/docs/execution-providers, pages CUDA and TensorRT. Both were put to the parsers of
onnxruntime-gpu 1.31, which refuse names and values that they do not know: CUDA's takes 1 and 0, TensorRT's True and
False only.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from zfserve_runtime.bundle import Precision, file_digest

from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts, detect_gpu
from zfserve_engines.kind import Package
from zfserve_engines.tensorrt.settings import COMPILED_PRECISIONS

log = logging.getLogger(__name__)

Chain = list[tuple[str, dict[str, str]]]
"""Providers with their options, most wanted first; each node goes to the first that can run it."""


@dataclass(frozen=True)
class Workload:
    """What a session has to run.

    Attributes:
        graph: the ONNX file.
        image_shape: (H, W, 3).
    """

    graph: Path
    precision: Precision
    image_shape: tuple[int, int, int]
    max_batch_size: int


@dataclass(frozen=True)
class CpuProvider:
    """ONNX Runtime's own kernels."""

    name: ClassVar[str] = "CPUExecutionProvider"
    package: ClassVar[Package] = Package("ONNX Runtime", "onnxruntime", "server")
    session_per_batch_size: ClassVar[bool] = False

    def chain(self, workload: Workload, runtime_version: str) -> Chain:
        return [(self.name, {})]


@dataclass(frozen=True)
class CudaProvider:
    """cuDNN and cuBLAS, on the card that CUDA numbers 0, which CUDA_VISIBLE_DEVICES chooses.

    CUDA graphs stay off: each holds one shape at fixed addresses. `TensorRTEngine` has one per batch size.
    """

    name: ClassVar[str] = "CUDAExecutionProvider"
    package: ClassVar[Package] = Package("ONNX Runtime", "onnxruntime", "server-gpu")
    session_per_batch_size: ClassVar[bool] = True
    """A session keeps one plan for each convolution and makes another whenever the batch's size changes (ONNX Runtime's
    issue 23006): on an H200, 12 ms in place of 2 for fp16 batches of 1 to 32."""
    needs: ClassVar[str] = (
        "an NVIDIA driver, and CUDA and cuDNN of the versions that ONNX Runtime was built for, as "
        "`pip install 'onnxruntime-gpu[cuda,cudnn]'` brings them"
    )

    def options(self, precision: Precision) -> dict[str, str]:
        return {
            "device_id": "0",
            # The arena doubles by default; a card is shared with the projection worker.
            "arena_extend_strategy": "kSameAsRequested",
            # All of it while warming up.
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            # It rounds what fp32 multiplications take in to 11 bits, and then fp32 is not what was exported. But
            # without it ONNX Runtime takes every tensor core from convolutions, whatever their type.
            "use_tf32": _flag(precision == "fp16"),
            # Channels last suits the tensor cores: 0.28 in place of 0.42 ms a photo on an H200. In fp32 it costs.
            "prefer_nhwc": _flag(precision == "fp16"),
        }

    def chain(self, workload: Workload, runtime_version: str) -> Chain:
        return [(self.name, self.options(workload.precision)), *CpuProvider().chain(workload, runtime_version)]


@dataclass(frozen=True)
class TensorRTProvider:
    """TensorRT 10 inside ONNX Runtime; what it cannot compile runs on CUDA, with the options of `CudaProvider`.

    The provider knows no TF32 option: fp32 may use it, as TensorRT does by default. The golden inputs say whether
    it stays within the tolerance.

    Attributes:
        cache: folder for compiled engines and timings; None: compile at every start.
        find_gpu: which card it is; engines of one are not for another.
    """

    name: ClassVar[str] = "TensorrtExecutionProvider"
    package: ClassVar[Package] = CudaProvider.package
    session_per_batch_size: ClassVar[bool] = False
    library: ClassVar[str] = "libnvinfer.so.10"
    needs: ClassVar[str] = "what CUDAExecutionProvider needs, and libnvinfer.so.10 of TensorRT 10"
    cache: Path | None = None
    find_gpu: Callable[[], GpuFacts | None] = detect_gpu

    def options(self, workload: Workload, folder: Path | None) -> dict[str, str]:
        """Args:
        folder: of the engines of this workload on this card alone, from `engine_folder`.
        """

        def shape(size: int) -> str:
            return "pixels:" + "x".join(str(side) for side in (size, *workload.image_shape))

        largest = shape(workload.max_batch_size)
        options = {
            "device_id": "0",
            # Without a profile it compiles again whenever it meets a batch outside those that it has seen.
            "trt_profile_min_shapes": shape(1),
            "trt_profile_opt_shapes": largest,
            "trt_profile_max_shapes": largest,
            # The graph decides what is computed in what; TensorRT 10 must still be allowed to.
            "trt_fp16_enable": str(workload.precision == "fp16"),
            "trt_int8_enable": str(workload.precision == "int8-symmetric"),
        }
        if folder is not None:
            options |= {
                "trt_engine_cache_enable": str(True),
                "trt_engine_cache_path": str(folder),
                "trt_engine_cache_prefix": workload.precision,
                "trt_timing_cache_enable": str(True),
                "trt_timing_cache_path": str(folder.parent),
            }
        return options

    def chain(self, workload: Workload, runtime_version: str) -> Chain:
        """Raises EngineUnavailable for a graph that TensorRT does not compile."""
        if workload.precision not in COMPILED_PRECISIONS:
            raise EngineUnavailable(
                f"TensorRT compiles {', '.join(COMPILED_PRECISIONS)}, not {workload.precision}; choose one of those"
            )
        options = self.options(workload, self._make_folder(workload, runtime_version))
        return [(self.name, options), *CudaProvider().chain(workload, runtime_version)]

    def _make_folder(self, workload: Workload, runtime_version: str) -> Path | None:
        """None where engines cannot be kept safely, for a reason that is logged."""
        if self.cache is None:
            return None
        gpu = self.find_gpu()
        if gpu is None:
            log.warning("TensorRT engines are not kept: without cuda-bindings, which card this is cannot be told")
            return None
        folder = engine_folder(self.cache, workload, gpu, runtime_version)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("TensorRT engines are not kept: their folder cannot be made (%s)", error)
            return None
        return folder


GpuProvider = CudaProvider | TensorRTProvider
OnnxProvider = CpuProvider | GpuProvider

CPU = CpuProvider()


def engine_folder(cache: Path, workload: Workload, gpu: GpuFacts, runtime_version: str) -> Path:
    """Where the engines of this workload on this card belong, and no others.

    ONNX Runtime's own names for them tell neither weights nor shapes apart (its issues 6455 and 32254), so each
    workload gets a folder of its own, named by a digest of all that an engine depends on.
    """
    identity = {
        "graph": file_digest(workload.graph),
        "image_shape": workload.image_shape,
        "max_batch_size": workload.max_batch_size,
        "gpu": asdict(gpu),
        "onnxruntime": runtime_version,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache / "onnxruntime" / digest[:32]


def _flag(value: bool) -> str:
    return "1" if value else "0"
