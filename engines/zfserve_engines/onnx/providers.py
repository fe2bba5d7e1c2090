"""Sets the options of ONNX Runtime's execution providers. `kinds`, `engine` and `session` use it.

It does not import ONNX Runtime.

Source of the options: onnxruntime.ai/docs/execution-providers, pages CUDA and TensorRT. They were tested with the
parsers of onnxruntime-gpu 1.31, which refuse unknown names and values. For flags, CUDA's parser takes only 1 and 0, and
TensorRT's parser takes only True and False.
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
"""Lists providers with their options, in order of preference. Each node of the graph runs on the first provider that
supports it."""


@dataclass(frozen=True)
class Workload:
    """Describes what a session runs.

    Attributes:
        graph: the ONNX file.
        precision: the precision of the graph.
        image_shape: the shape (H, W, 3) of one photo.
        max_batch_size: the largest number of photos in one run.
    """

    graph: Path
    precision: Precision
    image_shape: tuple[int, int, int]
    max_batch_size: int


@dataclass(frozen=True)
class CpuProvider:
    """Computes with ONNX Runtime's own CPU kernels."""

    name: ClassVar[str] = "CPUExecutionProvider"
    package: ClassVar[Package] = Package("ONNX Runtime", "onnxruntime", "server")
    session_per_batch_size: ClassVar[bool] = False

    def chain(self, workload: Workload, runtime_version: str) -> Chain:
        """Returns the providers of a session that runs `workload`."""
        return [(self.name, {})]


@dataclass(frozen=True)
class CudaProvider:
    """Computes with cuDNN and cuBLAS on CUDA's device 0, which CUDA_VISIBLE_DEVICES chooses.

    CUDA graphs stay off, because each CUDA graph is for one shape at fixed addresses. (`TensorRTEngine` captures one
    for each batch size.)
    """

    name: ClassVar[str] = "CUDAExecutionProvider"
    package: ClassVar[Package] = Package("ONNX Runtime", "onnxruntime", "server-gpu")
    session_per_batch_size: ClassVar[bool] = True
    """A session keeps one plan for each convolution and makes another whenever the batch size changes (ONNX Runtime's
    issue 23006). With one session for all sizes, fp16 batches of 1 to 32 took 12 ms instead of 2 ms on an H200."""
    needs: ClassVar[str] = (
        "an NVIDIA driver, and CUDA and cuDNN in the versions that ONNX Runtime was built for; "
        "`pip install 'onnxruntime-gpu[cuda,cudnn]'` installs both"
    )

    def options(self, precision: Precision) -> dict[str, str]:
        """Returns the options of the provider for a graph of that precision."""
        return {
            "device_id": "0",
            # The arena doubles by default, but the GPU is shared with the projection worker.
            "arena_extend_strategy": "kSameAsRequested",
            # The search runs during the warm-up only.
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            # TF32 rounds the inputs of fp32 multiplications to 11 bits, so fp32 outputs would differ from the export's.
            # But without TF32, ONNX Runtime uses no tensor cores for convolutions of any type, so fp16 needs it.
            "use_tf32": _flag(precision == "fp16"),
            # Tensor cores are faster with channels last: 0.28 instead of 0.42 ms for a photo on an H200. fp32 is slower
            # with channels last.
            "prefer_nhwc": _flag(precision == "fp16"),
        }

    def chain(self, workload: Workload, runtime_version: str) -> Chain:
        """Returns the providers of a session that runs `workload`."""
        return [(self.name, self.options(workload.precision)), *CpuProvider().chain(workload, runtime_version)]


@dataclass(frozen=True)
class TensorRTProvider:
    """Computes with TensorRT 10 inside ONNX Runtime. Nodes that it cannot compile run on CUDA, as in `CudaProvider`.

    The provider has no option for TF32, so fp32 may use TF32, which is TensorRT's default. The golden inputs check that
    the outputs stay within the tolerance.

    Attributes:
        cache: the folder of compiled engines and timings; None: keep none, and compile at every start.
        find_gpu: returns the GPU of this machine. An engine that was compiled for one GPU does not serve on another.
    """

    name: ClassVar[str] = "TensorrtExecutionProvider"
    package: ClassVar[Package] = CudaProvider.package
    session_per_batch_size: ClassVar[bool] = False
    library: ClassVar[str] = "libnvinfer.so.10"
    needs: ClassVar[str] = "the libraries of CUDAExecutionProvider, and libnvinfer.so.10 of TensorRT 10"
    cache: Path | None = None
    find_gpu: Callable[[], GpuFacts | None] = detect_gpu

    def options(self, workload: Workload, folder: Path | None) -> dict[str, str]:
        """Returns the options of the provider for `workload`.

        Args:
            folder: the folder of the engines of this workload on this GPU, from `engine_folder`; None: keep none.
        """

        def shape(size: int) -> str:
            return "pixels:" + "x".join(str(side) for side in (size, *workload.image_shape))

        largest = shape(workload.max_batch_size)
        options = {
            "device_id": "0",
            # Without a profile, TensorRT compiles again for each batch size outside the range that it has seen.
            "trt_profile_min_shapes": shape(1),
            "trt_profile_opt_shapes": largest,
            "trt_profile_max_shapes": largest,
            # The graph fixes the precision of each node, but TensorRT 10 must still be allowed to use it.
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
        """Returns the providers of a session that runs `workload`.

        Raises:
            EngineUnavailable: TensorRT does not compile graphs of that precision.
        """
        if workload.precision not in COMPILED_PRECISIONS:
            raise EngineUnavailable(
                f"TensorRT compiles {', '.join(COMPILED_PRECISIONS)}, not {workload.precision}; choose one of those"
            )
        options = self.options(workload, self._make_folder(workload, runtime_version))
        return [(self.name, options), *CudaProvider().chain(workload, runtime_version)]

    def _make_folder(self, workload: Workload, runtime_version: str) -> Path | None:
        """Makes the folder of compiled engines. Returns None and logs why if engines cannot be kept safely."""
        if self.cache is None:
            return None
        gpu = self.find_gpu()
        if gpu is None:
            log.warning("TensorRT engines are not kept: without cuda-bindings the GPU is unknown")
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
    """Returns the folder of the engines of this workload on this GPU.

    ONNX Runtime's own file names distinguish neither weights nor shapes (its issues 6455 and 32254). So each workload
    has a folder of its own, whose name is a digest of everything that an engine depends on.
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
