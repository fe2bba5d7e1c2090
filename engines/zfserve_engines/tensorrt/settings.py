"""What a TensorRT engine is built for and with. Part of the cache key, so that whatever changes it builds anew."""

from dataclasses import dataclass
from typing import Literal

from zfserve_runtime.bundle import Precision

TensorRTLibrary = Literal["tensorrt", "tensorrt-rtx"]
"""NVIDIA's two libraries with one API: `tensorrt` builds on the card it will run on, `tensorrt-rtx` for any."""

COMPILED_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-symmetric")


@dataclass(frozen=True)
class BuildSettings:
    """How one engine is built.

    Attributes:
        precision: the graph of the bundle that is compiled, one of `COMPILED_PRECISIONS`.
        batches: a batch size for each optimisation profile, ascending; a profile takes every batch from one more than
            the size before it (the first: from 1) up to its own, and is tuned for the largest.
        compute_capabilities: cards to build for, such as "8.9"; empty: the card at hand, and without one, where the
            library can do so, every card from Ampere on.
        workspace_bytes: most scratch memory on the device; None: the library's default.
        optimization_level: 0 (fastest to build) to 5.
        tf32: let fp32 multiplications round their inputs to 11 bits; off for parity.
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
