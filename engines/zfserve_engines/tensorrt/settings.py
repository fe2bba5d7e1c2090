"""Defines the settings of a TensorRT build. They are part of the key of an engine in the store."""

from dataclasses import dataclass
from typing import Literal

from zfserve_runtime.bundle import Precision

TensorRTLibrary = Literal["tensorrt", "tensorrt-rtx"]
"""NVIDIA's two libraries. `tensorrt` builds on the GPU that runs the engine, `tensorrt-rtx` builds for any GPU."""

COMPILED_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-symmetric")
"""The graphs of a bundle that TensorRT compiles. It takes int8 with zero points of 0 only."""


@dataclass(frozen=True)
class BuildSettings:
    """Holds the settings with which one engine is built.

    Attributes:
        library: the library that builds the engine.
        precision: the graph of the bundle that is compiled, one of `COMPILED_PRECISIONS`.
        batches: one batch size for each optimisation profile, ascending. A profile takes every batch that is larger
            than the previous size, up to its own size. It is tuned for its own size.
        compute_capabilities: the compute capabilities of the target GPUs, such as "8.9". Empty: the GPU of this
            machine; `tensorrt-rtx` without a GPU builds for every GPU from Ampere on.
        workspace_bytes: the largest scratch memory on the GPU; None: the library's default.
        optimization_level: TensorRT's effort, from 0 (fastest build) to 5 (fastest engine).
        tf32: True lets fp32 multiplications round their inputs to 11 bits. False is for parity with
            the export.
    """

    library: TensorRTLibrary
    precision: Precision
    batches: tuple[int, ...] = (1, 8, 32)
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int = 3
    tf32: bool = False

    def __post_init__(self) -> None:
        faults = []
        if self.precision not in COMPILED_PRECISIONS:
            faults.append(f"precision {self.precision} is not one of {', '.join(COMPILED_PRECISIONS)}")
        if not self.batches or self.batches[0] < 1 or list(self.batches) != sorted(set(self.batches)):
            faults.append(f"batches must be different, ascending and at least 1, not {self.batches}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            faults.append("the workspace must be at least 1 byte")
        if not 0 <= self.optimization_level <= 5:
            faults.append(f"the optimisation level must be 0 to 5, not {self.optimization_level}")
        if faults:
            raise ValueError("; ".join(faults))
