"""The pace of an engine thread says how many bulk images its engines run in a short time. `engine_thread` uses it."""

from collections import deque
from weakref import WeakKeyDictionary

from zfserve_engines.readings.plan import ReadingEngine

BULK_BATCH_S = 0.05
"""The seconds that a batch of bulk images may last while interactive images come."""

MEASURED_BATCHES = 8
"""The number of last batches of each engine that count."""


class BulkPace:
    """Measures the batches of the engines that one thread runs: the one that serves, and those that read layers."""

    def __init__(self) -> None:
        self._serving: deque[float] = deque(maxlen=MEASURED_BATCHES)  # seconds for one image, by batch
        self._reading: WeakKeyDictionary[ReadingEngine, deque[float]] = WeakKeyDictionary()

    def observe(self, reading: ReadingEngine | None, rows: int, seconds: float) -> None:
        """Records a batch. `reading` is the engine that ran it; None is the engine that serves."""
        self._of(reading).append(seconds / rows)

    def row_s(self, reading: ReadingEngine | None) -> float | None:
        """Returns the seconds that one image takes: those of the slowest of the last batches. None: not measured."""
        return max(self._of(reading), default=None)

    def rows(self, reading: ReadingEngine | None) -> int:
        """Returns how many images a batch may have, so that it lasts `BULK_BATCH_S` at most, or has one image."""
        row_s = self.row_s(reading)
        return 1 if row_s is None else max(1, int(BULK_BATCH_S / row_s))

    def _of(self, reading: ReadingEngine | None) -> deque[float]:
        if reading is None:
            return self._serving
        return self._reading.setdefault(reading, deque(maxlen=MEASURED_BATCHES))
