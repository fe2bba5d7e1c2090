"""Measures how fast a model's engines answer, from its last batches. The batcher reports batches; admission asks."""

import time
from collections import deque
from collections.abc import Callable, Iterable

FIRST_GUESS_S = 0.05
"""Seconds for one image, until a batch is measured."""

MEASURED_BATCHES = 32
"""The number of last batches that the rate is measured over. Under load they cover a few seconds, so that the rate
follows changes of the machine's speed."""

OVERDUE_FACTOR = 2.0
"""A run that lasts this many times longer than usual is expected to last as long again."""


class ServiceRate:
    """Estimates when an image will be answered. Use it on the event loop only.

    Args:
        engines: the number of engines that run in parallel.
        running_s: returns the seconds that the longest current run has lasted; 0 where no engine runs.
        readings_s: returns the seconds for which images of studies occupy the engines before an image that has this
            many images ahead. Such images are not among those ahead.
    """

    def __init__(
        self,
        engines: int = 1,
        running_s: Callable[[], float] = lambda: 0.0,
        readings_s: Callable[[float], float] = lambda ahead: 0.0,
    ) -> None:
        self._engines = engines
        self._running_s = running_s
        self._readings_s = readings_s
        self._batches: deque[tuple[int, float, float]] = deque(maxlen=MEASURED_BATCHES)
        self._row_s = FIRST_GUESS_S
        self._rows = 1.0
        self._delivery_s = 0.0

    @property
    def measured(self) -> bool:
        """True once a batch was observed. Until then the estimates are guesses."""
        return bool(self._batches)

    @property
    def row_s(self) -> float:
        """Seconds of one engine for one image: the 90th percentile over the last batches.

        So neither a pause of the machine nor one fast batch changes it.
        """
        return self._row_s

    @property
    def rows(self) -> float:
        """The mean number of images in a batch."""
        return self._rows

    def observe(self, rows: int, seconds: float, delivery_s: float = 0.0) -> None:
        """Records one batch.

        Args:
            rows: images in the batch.
            seconds: from the moment at which the engine could have begun the batch to the end of the batch.
            delivery_s: seconds from the end of the batch until its results were delivered. In that time the event loop
                may wait for a CPU.
        """
        self._batches.append((rows, seconds, delivery_s))
        self._row_s = _percentile_90(seconds / rows for rows, seconds, _ in self._batches)
        self._rows = sum(rows for rows, _, _ in self._batches) / len(self._batches)
        self._delivery_s = _percentile_90(delivery_s for _, _, delivery_s in self._batches)

    def finish_s(self, ahead: float, rows: int = 1) -> float:
        """Returns the seconds until `rows` images are answered.

        An image is answered with its whole batch, including images that joined the batch later.

        Args:
            ahead: images that precede them, in the queue or in an engine.
        """
        run_s = self._row_s * (ahead / self._engines + max(rows, self._rows))
        return self.overdue_s() + self._readings_s(ahead) + run_s + self._delivery_s

    def blocked_s(self) -> float:
        """Returns the seconds until an engine is free, as far as an overdue run or a study occupies all of them."""
        return self.overdue_s() + self._readings_s(0)

    def overdue_s(self) -> float:
        """Returns how many more seconds an overdue run is expected to last; 0 if no run is overdue."""
        running_s = self._running_s()
        return running_s if self.measured and running_s > OVERDUE_FACTOR * self._row_s * self._rows else 0.0


def _percentile_90(seconds: Iterable[float]) -> float:
    ordered = sorted(seconds)
    return ordered[9 * len(ordered) // 10]


class Stopwatch:
    """Measures an engine's time for a batch, without the time that the engine waited for work.

    An engine with work in the queue could begin when its last batch ended. So the time between two batches, in which
    it delivers results and fills the next batch, counts for the service rate.
    """

    def __init__(self) -> None:
        self._ended = time.monotonic()

    def lap(self, submitted: float) -> float:
        """Returns the seconds since the engine could have begun the batch that ends now.

        Args:
            submitted: time.monotonic() when the first image of the batch entered the queue.
        """
        began, self._ended = max(self._ended, submitted), time.monotonic()
        return self._ended - began
