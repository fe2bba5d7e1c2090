"""Counts a model's requests since it was loaded, the time of their stages, and the runs of its engine.

Triton's protocol reports these statistics. They are exact, and the histograms of `metrics` are not. The server's
pipeline and its batcher update them on the event loop. `inference_metadata` reports them.
"""

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(slots=True)
class Total:
    """Counts events and adds up their seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one event that took `seconds`."""
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class ModelStatistics:
    """Holds the statistics of one version. The requests of all services count. A request may have several images.

    Attributes:
        answered, failed: the requests, timed from their arrival at the model to their end.
        decoding, queueing, inference, writing: the stages of answered requests. For a request with several images, the
            slowest image counts, so that the stages add up to the time of the request.
        last_answer_s: the time of the last answer, in seconds since 1970, or 0 without an answer.
        runs: the successful runs of the engine, by the number of images in the run.
    """

    answered: Total = field(default_factory=Total)
    failed: Total = field(default_factory=Total)
    decoding: Total = field(default_factory=Total)
    queueing: Total = field(default_factory=Total)
    inference: Total = field(default_factory=Total)
    writing: Total = field(default_factory=Total)
    last_answer_s: float = 0.0
    runs: dict[int, Total] = field(default_factory=dict)

    def add_run(self, images: int, seconds: float) -> None:
        """Counts a successful run of the engine."""
        self.runs.setdefault(images, Total()).add(seconds)

    @property
    def run_count(self) -> int:
        """The number of successful runs of the engine."""
        return sum(total.count for total in self.runs.values())

    @property
    def image_count(self) -> int:
        """The number of images in those runs."""
        return sum(images * total.count for images, total in self.runs.items())

    def request(self) -> "CountedRequest":
        """Returns a context manager around one request.

        The request counts as answered if `CountedRequest.inferred` was called and the block raises nothing. Otherwise
        it counts as failed.
        """
        return CountedRequest(self)


class CountedRequest:
    """Times one request. It is a class, because a generator is slower and a client waits for it."""

    __slots__ = ("_began_s", "_inferred_s", "_stages", "_statistics")

    def __init__(self, statistics: ModelStatistics) -> None:
        self._statistics = statistics
        self._inferred_s = 0.0

    def inferred(self, decode_s: float, queue_s: float, inference_s: float) -> None:
        """Records that the engine has answered, and the seconds of each stage. The rest counts as `writing`."""
        self._inferred_s = time.monotonic()
        self._stages = decode_s, queue_s, inference_s

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended_s = time.monotonic()
        counted = self._statistics
        if error is not None or not self._inferred_s:
            counted.failed.add(ended_s - self._began_s)
            return
        decode_s, queue_s, inference_s = self._stages
        counted.answered.add(ended_s - self._began_s)
        counted.decoding.add(decode_s)
        counted.queueing.add(queue_s)
        counted.inference.add(inference_s)
        counted.writing.add(ended_s - self._inferred_s)
        counted.last_answer_s = time.time()
