"""Derives the worker's limits of memory from the memory that the process may use. Built by `app`, used by `projector`.

The most memory that a worker takes is about

    300 MB for Python and PyTorch
    + networks x (weights + `trace_bytes`)
    + calls in flight x (one trace + the results of one chunk of maps)
    + the signals of one chunk, or the points of one batch of an attribution

because one thread computes one step at a time. docs/capacity.md has an example.
"""

from dataclasses import dataclass

import torch
from zfserve_model.explanation import attribution, deconvnet
from zfserve_runtime.memory import available_memory

_TRACE_SHARE = 16
"""The traces of one network take at most this fraction of the memory: a sixteenth. In a container of 2 GiB that is
room for eight traces of all layers of `zfnet`."""

_SIGNAL_SHARE = 64
"""The signals of one chunk of projections take at most this fraction of the memory."""

_POINT_SHARE = 16
"""The activations of one batch of an attribution's points take at most this fraction of the memory. Automatic
differentiation keeps them, and takes about as much again for the gradients."""


@dataclass(frozen=True)
class MemoryLimits:
    """Holds the limits of one network.

    Attributes:
        cached_traces: the largest number of traces to keep.
        trace_bytes: the most memory that they take together.
        signal_bytes: the most memory that the signals of a chunk of projections take. A single signal may take more.
        point_bytes: the most memory that the activations of a batch of an attribution's points take. A single point may
            take more.
    """

    cached_traces: int
    trace_bytes: int
    signal_bytes: int
    point_bytes: int


def memory_limits(cached_traces: int, device: torch.device) -> MemoryLimits:
    """Returns the limits for a network on `device`: shares of the memory of the card, or of this process."""
    available = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else available_memory()
    return MemoryLimits(
        cached_traces,
        trace_bytes=available // _TRACE_SHARE,
        signal_bytes=min(deconvnet.MEMORY_BYTES, available // _SIGNAL_SHARE),
        point_bytes=min(attribution.MEMORY_BYTES, available // _POINT_SHARE),
    )
