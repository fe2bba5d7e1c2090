"""The cache keeps the most recently used traces within its limits. The traces are only sizes."""

from dataclasses import dataclass
from typing import cast

from zfserve_model.explanation.deconvnet import Trace
from zfserve_worker.trace_cache import TraceCache


@dataclass(frozen=True)
class FakeTrace:
    nbytes: int


class Computations:
    """Counts the traces that were computed."""

    def __init__(self, max_traces: int, max_bytes: int) -> None:
        self.cache = TraceCache(max_traces, max_bytes)
        self.computed: list[str] = []

    def get(self, key: str, nbytes: int) -> int:
        def compute() -> Trace:
            self.computed.append(key)
            return cast("Trace", FakeTrace(nbytes))

        return self.cache.get(key, compute).nbytes


def test_the_number_of_traces_is_bounded() -> None:
    traces = Computations(2, 1000)
    for key in ("a", "b", "a", "c", "a", "b"):
        traces.get(key, 10)
    assert traces.computed == ["a", "b", "c", "b"]


def test_the_memory_of_the_traces_is_bounded() -> None:
    traces = Computations(9, 100)
    for key, nbytes in (("a", 40), ("b", 40), ("a", 40), ("c", 40), ("a", 40), ("b", 40)):
        traces.get(key, nbytes)
    assert traces.computed == ["a", "b", "c", "b"], "c has evicted b, the least recently used"


def test_a_trace_beyond_the_limit_is_used_but_not_kept() -> None:
    traces = Computations(9, 100)
    traces.get("a", 60)
    assert traces.get("large", 101) == 101
    assert traces.get("large", 101) == 101
    assert traces.get("a", 60) == 60
    assert traces.computed == ["a", "large", "large"]


def test_a_cleared_cache_has_all_its_memory_again() -> None:
    traces = Computations(9, 100)
    traces.get("a", 100)
    traces.cache.clear()
    traces.get("b", 100)
    traces.get("b", 100)
    assert traces.computed == ["a", "b"]
