"""Defines the records and the openers of the engines on ONNX Runtime. `catalogue` lists the records."""

from functools import partial

from zfserve_runtime.bundle import Precision

from zfserve_engines.contract import Engine
from zfserve_engines.kind import EngineKind
from zfserve_engines.onnx.providers import CPU, CpuProvider, CudaProvider, OnnxProvider, TensorRTProvider
from zfserve_engines.opening import EngineOptions, Phase, Report, Step, open_instances
from zfserve_engines.tensorrt.settings import COMPILED_PRECISIONS


def open_onnx_tensorrt(options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
    """Opens engines on TensorRT inside ONNX Runtime. They keep compiled engines in the folder of the engine store."""
    from zfserve_engines.store.store import EngineStore

    provider = TensorRTProvider(EngineStore.of(options.bundle, options.cache).folder)
    # ONNX Runtime does not say whether it compiles an engine or finds one in its cache.
    return _open_onnx(Step("onnx-tensorrt", Phase.COMPILING), provider, options, precision, report)


def open_onnx_cuda(options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
    """Opens engines on ONNX Runtime's CUDA kernels."""
    return _open_onnx(Step("onnx-cuda", Phase.LOADING), CudaProvider(), options, precision, report)


def open_onnx_cpu(options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
    """Opens engines on ONNX Runtime's CPU kernels."""
    return _open_onnx(Step("onnx-cpu", Phase.LOADING), CPU, options, precision, report)


def _open_onnx(
    first: Step, provider: OnnxProvider, options: EngineOptions, precision: Precision, report: Report
) -> list[Engine]:
    provider.package.load()
    from zfserve_engines.onnx.engine import OnnxEngine
    from zfserve_engines.onnx.session import require_libraries

    require_libraries(provider)
    return open_instances(first, partial(OnnxEngine, provider=provider), options, precision, report)


ONNX_TENSORRT = EngineKind(
    name="onnx-tensorrt",
    on_gpu=True,
    compiled=True,
    precisions=COMPILED_PRECISIONS,
    package=TensorRTProvider.package,
    open=open_onnx_tensorrt,
)

ONNX_CUDA = EngineKind(
    name="onnx-cuda",
    on_gpu=True,
    package=CudaProvider.package,
    open=open_onnx_cuda,
)

ONNX_CPU = EngineKind(
    name="onnx-cpu",
    on_gpu=False,
    package=CpuProvider.package,
    open=open_onnx_cpu,
)
