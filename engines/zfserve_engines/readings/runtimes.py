"""Opens the runtimes of reading engines: ONNX Runtime and OpenVINO. `opening` imports it when it opens an engine."""

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from zfserve_runtime.bundle import Precision

from zfserve_engines.onnx.providers import CpuProvider, CudaProvider
from zfserve_engines.openvino.engine import compile_graph
from zfserve_engines.readings.engine import Arrays, Runtime

ReadingEngineName = Literal["onnx-cpu", "onnx-cuda", "openvino", "openvino-bf16"]
"""The kinds of engines that can read layers."""


def open_runtime(name: ReadingEngineName, graph: bytes, precision: Precision, threads: int) -> Runtime:
    """Opens a graph on the runtime of that kind.

    Args:
        name: the kind of the engine.
        graph: the ONNX model.
        precision: the precision of the graph.
        threads: the number of CPU threads that share one run.

    Raises:
        EngineUnavailable: the runtime is not installed, or this machine cannot use it.
        BundleError: the runtime cannot load the graph.
    """
    if name in ("openvino", "openvino-bf16"):
        return _OpenVino(compile_graph(graph, threads, "bf16" if name == "openvino-bf16" else "f32"))
    provider = CudaProvider() if name == "onnx-cuda" else CpuProvider()
    provider.package.load()
    from zfserve_engines.onnx.session import open_graph

    return _Onnx(open_graph(graph, precision, provider, threads))


class _Onnx:
    """Runs a session of ONNX Runtime, which takes runs of several threads."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Sequence[npt.NDArray[np.generic]]:
        found: Sequence[npt.NDArray[np.generic]] = self._session.run(outputs, inputs)
        return found


class _OpenVino:
    """Runs a model that OpenVINO compiled. Each run that is under way at the same time has a request of its own."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: deque[Any] = deque()

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Sequence[npt.NDArray[np.generic]]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        found = request.infer(inputs, share_inputs=True)
        values = [found[name] for name in outputs]
        self._idle.append(request)
        return values
