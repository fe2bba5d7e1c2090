"""What a model has done since it was loaded: its requests and where their time went, and the runs of its engine.

Exact where the histograms of `metrics` are not, as Triton's protocol tells it. Counted on the event loop by the
server's services and its batcher; told by its `inference_metadata`.
"""

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(slots=True)
class Total:
    """How many there were, and how long they took together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class ModelStatistics:
    """Of one version. A request counts whichever service it came by; one with several images counts once.

    Attributes:
        answered, failed: from their arrival at the model to their end.
        decoding, queueing, inference, writing: the answered ones' stages. Of several images, those of the one that took
            longest, so that the stages add up to the time of the request.
        last_answer_s: seconds since 1970; 0 where there was none.
        runs: of the engine that gave an answer, by how many images they held.
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
        self.runs.setdefault(images, Total()).add(seconds)

    @property
    def run_count(self) -> int:
        return sum(total.count for total in self.runs.values())

    @property
    def image_count(self) -> int:
        """Images in those runs."""
        return sum(images * total.count for images, total in self.runs.items())

    def request(self) -> "CountedRequest":
        """A context around one request: it counts as answered where `CountedRequest.inferred` was told and nothing is
        raised, else as failed."""
        return CountedRequest(self)


class CountedRequest:
    """One request on its way. A class and not a generator: it stands between a lone client and its answer."""

    __slots__ = ("_began_s", "_inferred_s", "_stages", "_statistics")

    def __init__(self, statistics: ModelStatistics) -> None:
        self._statistics = statistics
        self._inferred_s = 0.0

    def inferred(self, decode_s: float, queue_s: float, inference_s: float) -> None:
        """The engine has answered; what is left is to write that down."""
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
