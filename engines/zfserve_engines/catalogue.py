"""Lists every kind of engine. The server's choice of engine, `zfserve evaluate` and the benchmarks read the list."""

from collections.abc import Mapping

from zfserve_engines.contract import EngineName
from zfserve_engines.kind import EngineKind
from zfserve_engines.onnx.kinds import ONNX_CPU, ONNX_CUDA, ONNX_TENSORRT
from zfserve_engines.openvino.engine import OPENVINO, OPENVINO_BF16
from zfserve_engines.tensorrt.kinds import TENSORRT, TENSORRT_RTX

ENGINE_KINDS: Mapping[EngineName, EngineKind] = {
    kind.name: kind for kind in (TENSORRT, TENSORRT_RTX, ONNX_TENSORRT, ONNX_CUDA, OPENVINO, ONNX_CPU, OPENVINO_BF16)
}
"""The record of each kind by its name. With `--engine auto`, the server tries the kinds in this order: TensorRT engines
that are tuned on this GPU, engines that are compiled for its compute capability, ONNX Runtime on the GPU, then engines
on the CPU. Kinds that `auto` never takes come last."""


def engine_kinds(*, on_gpu: bool) -> list[EngineKind]:
    """Returns the kinds of engines on a GPU, or those on the CPU, in `auto`'s order."""
    return [kind for kind in ENGINE_KINDS.values() if kind.on_gpu == on_gpu]
