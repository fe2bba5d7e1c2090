"""Keeps the forward passes of one network, so that further requests for a photo need none. Used by `projector`."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from zfserve_model.explanation.deconvnet import Trace


class TraceCache:
    """Keeps the most recently used traces, bounded by their number and by their memory.

    Args:
        max_traces: the largest number of traces.
        max_bytes: the most memory that they take together. A single trace that takes more is not kept.
    """

    def __init__(self, max_traces: int, max_bytes: int) -> None:
        self._max_traces = max_traces
        self._max_bytes = max_bytes
        self._bytes = 0
        self._traces: OrderedDict[Hashable, Trace] = OrderedDict()  # the least recently used first

    def get(self, key: Hashable, compute: Callable[[], Trace]) -> Trace:
        """Returns the trace of that key, which it computes and keeps if there is none."""
        if key in self._traces:
            self._traces.move_to_end(key)
            return self._traces[key]
        while len(self._traces) >= self._max_traces:
            self._evict()
        trace = compute()
        if trace.nbytes <= self._max_bytes:
            while self._bytes + trace.nbytes > self._max_bytes:
                self._evict()
            self._traces[key] = trace
            self._bytes += trace.nbytes
        return trace

    def clear(self) -> None:
        self._traces.clear()
        self._bytes = 0

    def _evict(self) -> None:
        _, trace = self._traces.popitem(last=False)
        self._bytes -= trace.nbytes
