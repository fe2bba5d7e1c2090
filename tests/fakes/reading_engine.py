"""Reads layers of a fake network whose values a test can compute by hand.

It knows images by the same ids as `fakes.serving.FakeEngine`, and gives the same probabilities and features. It is a
module of its own, because `serving` needs `model_repository`, which needs this.
"""

import threading

import numpy as np
import numpy.typing as npt
from zfserve_engines.contract import EngineInfo, EngineName
from zfserve_engines.readings.plan import Reading, ReadingPlan, ReadOutputs, ReadValues, Replacement
from zfserve_runtime.errors import EngineFailed

CLASSES = 10


def fake_maps(identity: int, reading: Reading) -> npt.NDArray[np.float32]:
    """Returns the maps of the image `identity`: float32 (C, H, W).

    Map c is `identity + c` at one unit and a hundredth of it elsewhere. The unit's place in row order is
    `identity + c` modulo the number of units.
    """
    units = reading.height * reading.width
    peaks = identity + np.arange(reading.channels)
    maps = np.repeat(peaks[:, None] / 100, units, axis=1)
    maps[np.arange(reading.channels), peaks % units] = peaks
    return maps.reshape(reading.channels, reading.height, reading.width).astype(np.float32)


class FakeReadingEngine:
    """Gives `fake_maps`. A replaced map lowers the probability of the image's class by a thousandth.

    Args:
        plan: what it reads.
        max_batch_size: the largest number of images in one run.

    Attributes:
        open: while it is cleared, each run waits until it is set again.
        runs: gets one permit for each run that has begun.
        failures: each run raises one of them, as long as there are any.
        poison: ids of images that fail every run that contains them.
        batches: the ids of each batch, in order.
        replacements: the replacement of each batch, in order.
    """

    def __init__(self, plan: ReadingPlan, max_batch_size: int = 4) -> None:
        self.name: EngineName = "onnx-cpu"
        self.plan = plan
        self.info = EngineInfo("fake", "FakeProvider", "fp32", max_batch_size, 1)
        self.closed = False
        self.open = threading.Event()
        self.open.set()
        self.runs = threading.Semaphore(0)
        self.failures: list[BaseException] = []
        self.poison: set[int] = set()
        self.batches: list[list[int]] = []
        self.replacements: list[Replacement | None] = []

    def run(self, pixels: npt.NDArray[np.uint8], replacement: Replacement | None = None) -> ReadOutputs:
        assert len(pixels) <= self.info.max_batch_size
        assert replacement is None or replacement.keep.shape == (len(pixels), self.plan.ablated_channels)
        ids = pixels[:, 0, 0, :2].astype(np.int64) @ np.array([256, 1])
        self.batches.append(ids.tolist())
        self.replacements.append(replacement)
        self.runs.release()
        assert self.open.wait(timeout=30)
        if self.closed:
            raise EngineFailed("the engine is closed")
        if self.failures:
            raise self.failures.pop(0)
        if self.poison.intersection(ids.tolist()):
            raise RuntimeError("an image of this batch is bad")
        probabilities = np.full((len(pixels), CLASSES), 0.05, np.float32)
        probabilities[np.arange(len(pixels)), ids % 256 % CLASSES] = 0.55
        if replacement is not None:
            replaced = (replacement.keep == 0).sum(axis=1)
            probabilities[np.arange(len(pixels)), ids % 256 % CLASSES] -= replaced * np.float32(1e-3)
        features = np.stack([ids, ids * 2], axis=1).astype(np.float32)
        readings = tuple(_read(reading, ids.tolist()) for reading in self.plan.readings)
        return ReadOutputs(probabilities, features, readings)

    def close(self) -> None:
        self.closed = True


def _read(reading: Reading, ids: list[int]) -> ReadValues:
    maps = np.stack([fake_maps(identity, reading) for identity in ids])
    if reading.form == "maps":
        return ReadValues(maps)
    flat = maps.reshape(len(ids), reading.channels, -1)
    if reading.form == "sums":
        return ReadValues(flat.sum(axis=2))
    rows, columns = np.divmod(flat.argmax(axis=2), reading.width)
    return ReadValues(flat.max(axis=2), rows, columns)
