"""The pace of a model's engines: seconds an image at the batch sizes of late. Measured by the batcher, asked by
admission."""

import time
from collections import deque
from collections.abc import Callable, Iterable

FIRST_GUESS_S = 0.05
"""Seconds for one image, until the first batches were measured."""

REMEMBERED = 32
"""Batches. Under load these are a few seconds, so that the pace follows the machine's."""

OVERDUE = 2.0
"""Times the usual. A run that lasts longer is taken to last as long again."""


class ServiceRate:
    """Use from the event loop's thread only.

    Args:
        engines: that work side by side.
        running_s: for how long the longest run under way has lasted; 0 where none is.
    """

    def __init__(self, engines: int = 1, running_s: Callable[[], float] = lambda: 0.0) -> None:
        self._engines = engines
        self._running_s = running_s
        self._batches: deque[tuple[int, float, float]] = deque(maxlen=REMEMBERED)
        self._row_s = FIRST_GUESS_S
        self._rows = 1.0
        self._delivery_s = 0.0

    @property
    def measured(self) -> bool:
        return bool(self._batches)

    @property
    def row_s(self) -> float:
        """Seconds of one engine for an image: what nine batches in ten kept to, so that neither a pause of the machine
        nor a lucky batch counts."""
        return self._row_s

    @property
    def rows(self) -> float:
        """Of a batch, on average."""
        return self._rows

    def observe(self, rows: int, seconds: float, delivery_s: float = 0.0) -> None:
        """One batch, from when the engine could have begun it to its end, and from there until its answers were handed
        out, for which the event loop may have waited for a CPU."""
        self._batches.append((rows, seconds, delivery_s))
        self._row_s = _nine_in_ten(seconds / rows for rows, seconds, _ in self._batches)
        self._rows = sum(rows for rows, _, _ in self._batches) / len(self._batches)
        self._delivery_s = _nine_in_ten(delivery_s for _, _, delivery_s in self._batches)

    def finish_s(self, ahead: float, rows: int = 1) -> float:
        """Seconds until `rows` images are answered that `ahead` others precede, those under way included.

        An image is answered with its whole batch, also with those that joined it later.
        """
        run_s = self._row_s * (ahead / self._engines + max(rows, self._rows))
        return self.overdue_s() + run_s + self._delivery_s

    def overdue_s(self) -> float:
        """Seconds that the run under way is expected to last yet where it has lasted too long already; else 0."""
        running_s = self._running_s()
        return running_s if self.measured and running_s > OVERDUE * self._row_s * self._rows else 0.0


def _nine_in_ten(seconds: Iterable[float]) -> float:
    """What so many keep to."""
    ordered = sorted(seconds)
    return ordered[9 * len(ordered) // 10]


class Stopwatch:
    """Tells a busy engine's time for a batch from one that waited for work.

    An engine with work waiting could have begun when its last batch ended, so what lies between (handing over answers,
    filling the next batch) is part of its pace.
    """

    def __init__(self) -> None:
        self._ended = time.monotonic()

    def lap(self, submitted: float) -> float:
        """Seconds since the engine could have begun the batch that ends now, whose first image came at `submitted`."""
        began, self._ended = max(self._ended, submitted), time.monotonic()
        return self._ended - began
