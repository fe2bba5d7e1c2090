"""Defines the interface of an engine, which runs a bundle's network, and the types of its outputs and description.

The engines in onnx/, openvino/ and tensorrt/ implement it. The batcher, `zfserve_engines.golden` and the evaluation of
a bundle call it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from zfserve_runtime.bundle import InputSpec, Precision

EngineName = Literal["tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda", "openvino", "onnx-cpu", "openvino-bf16"]
"""The names of the kinds of engines, in the order of `catalogue.ENGINE_KINDS`."""


@dataclass(frozen=True, eq=False)
class EngineOutputs:
    """The outputs of one batch. Row i belongs to row i of the input.

    Attributes:
        probabilities: float32 (N, K), the probability of each class; each row sums to 1.
        features: float32 (N, F), the activations that enter the last linear layer. F is 0 if there is no such layer.
    """

    probabilities: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]

    @classmethod
    def of(cls, values: Mapping[str, npt.NDArray[np.float32]]) -> Self:
        """Returns the outputs of a graph, given by their names. A graph may have no output `features`."""
        probabilities = values["probabilities"]
        return cls(probabilities, values.get("features", np.empty((len(probabilities), 0), np.float32)))


@dataclass(frozen=True)
class EngineInfo:
    """Describes an engine.

    Attributes:
        runtime: the library that runs the network, such as "onnxruntime".
        provider: the part of the library that computes, such as "CPUExecutionProvider".
        precision: the graph of the bundle that the engine runs.
        max_batch_size: the largest number of photos that `run` takes at once.
        threads: the number of CPU threads that share one `run`.
        device: the device that computes: "CPU", or the name of the GPU.
        bf16: True where the engine computes the graph's float32 operations in bfloat16.
    """

    runtime: str
    provider: str
    precision: Precision
    max_batch_size: int
    threads: int
    device: str = "CPU"
    bf16: bool = False

    def check_batch(self, pixels: npt.NDArray[np.uint8], spec: InputSpec) -> None:
        """Asserts that `pixels` is a batch that `Engine.run` accepts. Any other batch is a bug of the caller."""
        assert pixels.dtype == np.uint8, pixels.dtype
        assert pixels.shape[1:] == (spec.height, spec.width, 3), pixels.shape
        assert 1 <= len(pixels) <= self.max_batch_size, len(pixels)


OnWarming = Callable[[int, int], None]
"""Receives the progress of a warm-up: the number of batch sizes that are warm, and the number of all batch sizes."""


class EngineUnavailable(Exception):
    """This machine cannot run this kind of engine. The message says in one sentence why, and what would help."""


class Engine(Protocol):
    """Runs a network. Only one thread may use it at a time."""

    @property
    def info(self) -> EngineInfo:
        """Describes the engine."""

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        """Classifies `pixels`, uint8 (N, H, W, 3), RGB, with 1 <= N <= `info.max_batch_size`. Blocks.

        Raises:
            EngineFailed: the runtime failed on this batch.
            EngineLost: the runtime cannot run any batch any more. Only a new process can.
        """

    def close(self) -> None:
        """Frees the memory on the device. `run` must not be called after it."""
