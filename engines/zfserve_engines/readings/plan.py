"""Defines what a reading engine computes beside probabilities and features, and the interface of such an engine.

A reading engine runs a bundle's network as `Engine` does. It also returns what some layers compute, and can replace the
feature maps of one layer. The server's studies use it. `opening` opens one. This module imports no engine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from zfserve_engines.contract import EngineInfo, EngineName, EngineOutputs

Form = Literal["maps", "strongest", "sums"]
"""The form of a reading: all values of each map; the largest value of each map with its position, the first in row
order if several are equal; or the sum of each map over its units."""

MAX_READ_BYTES = 64 * 2**20
"""The readings of one run take at most this many bytes, or those of one photo."""


@dataclass(frozen=True)
class Reading:
    """Names one layer to read.

    Attributes:
        tensor: the name of the layer's output in `model.onnx`, as in `LayerEntry.tensor`.
        channels, height, width: the shape of the layer's output for one photo.
        form: the form of the values.
    """

    tensor: str
    channels: int
    height: int
    width: int
    form: Form

    @property
    def photo_bytes(self) -> int:
        """Returns the number of bytes that this reading takes for one photo."""
        units = self.height * self.width
        return self.channels * {"maps": 4 * units, "strongest": 4 + 8 + 8, "sums": 4}[self.form]


@dataclass(frozen=True)
class ReadingPlan:
    """Says what a reading engine computes. Equal plans need only one engine.

    Attributes:
        readings: the layers to read, in the order of `ReadOutputs.readings`.
        ablated: the tensor of the layer whose maps may be replaced, as in `LayerEntry.tensor`. Empty: none.
        ablated_channels: the number of that layer's maps. 0 if none may be replaced.
    """

    readings: tuple[Reading, ...] = ()
    ablated: str = ""
    ablated_channels: int = 0

    def max_batch_size(self, largest: int) -> int:
        """Returns how many photos one run may take: at most `largest`, and no more than `MAX_READ_BYTES` allows."""
        photo_bytes = sum(reading.photo_bytes for reading in self.readings)
        return max(1, min(largest, MAX_READ_BYTES // photo_bytes)) if photo_bytes else largest


@dataclass(frozen=True, eq=False)
class Replacement:
    """Replaces maps of the ablated layer by `map * keep + values`. Row i belongs to photo i.

    Attributes:
        keep: float32 (N, C). 1 keeps a map, 0 removes it.
        values: float32 (N, C), the value that each unit of a removed map gets; 0 for a map that is kept.
    """

    keep: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]

    @classmethod
    def nothing(cls, photos: int, channels: int) -> Self:
        """Returns the replacement that keeps every map of `photos` photos."""
        return cls(np.ones((photos, channels), np.float32), np.zeros((photos, channels), np.float32))

    @classmethod
    def of_batch(cls, rows: Sequence[Self | None], channels: int) -> Self:
        """Joins the replacements of single photos, each with one row. None keeps every map of its photo."""
        kept = cls.nothing(1, channels)
        return cls(
            np.concatenate([(row or kept).keep for row in rows]),
            np.concatenate([(row or kept).values for row in rows]),
        )


@dataclass(frozen=True, eq=False)
class ReadValues:
    """Holds the values of one reading. Row i belongs to photo i.

    Attributes:
        values: float32; (N, C, H, W) for the form "maps", and (N, C) for "strongest" and "sums".
        rows, columns: int64 (N, C), the position of each value in its map. None unless the form is "strongest".
    """

    values: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64] | None = None
    columns: npt.NDArray[np.int64] | None = None

    def of_photo(self, row: int) -> "ReadValues":
        """Returns the values of one photo, without the axis of photos: (C, H, W) or (C,)."""
        if self.rows is None or self.columns is None:
            return ReadValues(self.values[row])
        return ReadValues(self.values[row], self.rows[row], self.columns[row])

    def is_finite(self) -> list[bool]:
        """Returns for each photo whether all its values are finite."""
        # One NaN or infinity makes the sum non-finite. So may an overflow, and then every value is tested.
        with np.errstate(over="ignore", invalid="ignore"):
            return [math.isfinite(row.sum()) or bool(np.isfinite(row).all()) for row in self.values]


@dataclass(frozen=True, eq=False)
class ReadOutputs(EngineOutputs):
    """Holds the outputs of one batch with its readings.

    Attributes:
        readings: the values of each reading, in the order of `ReadingPlan.readings`.
    """

    readings: tuple[ReadValues, ...] = ()


class ReadingEngine(Protocol):
    """Runs a network, and reads or replaces what its layers compute. Several threads may use it at once."""

    @property
    def name(self) -> EngineName:
        """The kind of the engine that computes."""

    @property
    def info(self) -> EngineInfo:
        """Describes the engine. Its precision is that of the graph that is run; its largest batch fits the plan."""

    @property
    def plan(self) -> ReadingPlan:
        """The plan says what the engine computes."""

    @property
    def closed(self) -> bool:
        """True once `close` was called."""

    def run(self, pixels: npt.NDArray[np.uint8], replacement: Replacement | None = None) -> ReadOutputs:
        """Classifies `pixels`, uint8 (N, H, W, 3), RGB, with 1 <= N <= `info.max_batch_size`. Blocks.

        Args:
            pixels: the photos.
            replacement: the maps to replace. None replaces none. It must be None if the plan ablates no layer.

        Raises:
            EngineFailed: the runtime failed on this batch, or the engine is closed.
            EngineLost: the runtime cannot run any batch any more. Only a new process can.
        """

    def close(self) -> None:
        """Frees the engine's memory, once the runs of other threads have ended. It may be called twice."""
