"""What the server asks of whatever runs the network, and the data that passes between them.

Implemented by `zfserve_engines.onnx.engine`; called by the batcher, by `zfserve_engines.golden` and by evaluation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from zfserve_runtime.bundle import InputSpec, Precision

EngineName = Literal["tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda", "openvino", "onnx-cpu", "openvino-bf16"]
"""The names of the kinds of engines, in the order of `catalogue.ENGINE_KINDS`."""


@dataclass(frozen=True, eq=False)
class EngineOutputs:
    """Row i belongs to row i of the input.

    Attributes:
        probabilities: float32 (N, K); each row adds up to 1.
        features: float32 (N, F), the activations of the last hidden layer.
    """

    probabilities: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]


@dataclass(frozen=True)
class EngineInfo:
    """What runs the network.

    Attributes:
        runtime: such as "onnxruntime".
        provider: such as "CPUExecutionProvider".
        max_batch_size: most photos that `run` takes at once.
        threads: that share one `run`.
        device: what computes: "CPU", or the card's name.
        bf16: whether it computes in bfloat16 what the graph has in float32.
    """

    runtime: str
    provider: str
    precision: Precision
    max_batch_size: int
    threads: int
    device: str = "CPU"
    bf16: bool = False

    def check_batch(self, pixels: npt.NDArray[np.uint8], spec: InputSpec) -> None:
        """What `Engine.run` may rely on; a caller that breaks it has a bug."""
        assert pixels.dtype == np.uint8, pixels.dtype
        assert pixels.shape[1:] == (spec.height, spec.width, 3), pixels.shape
        assert 1 <= len(pixels) <= self.max_batch_size, len(pixels)


OnWarming = Callable[[int, int], None]
"""Told by an engine that warms up: batch sizes that are ready, and how many there are."""


class EngineUnavailable(Exception):
    """This kind of engine cannot be had on this machine; the message says why in one sentence, and what would help."""


class Engine(Protocol):
    """A network ready to run. It is used from one thread at a time."""

    @property
    def info(self) -> EngineInfo: ...

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        """Classify `pixels`, uint8 (N, H, W, 3), RGB, with 1 <= N <= `info.max_batch_size`. Blocks.

        Raises:
            EngineFailed: the runtime gave up on this batch.
            EngineLost: it gave up for good; nothing but a new process helps.
        """

    def close(self) -> None:
        """Free the device's memory; `run` must not be called any more."""
