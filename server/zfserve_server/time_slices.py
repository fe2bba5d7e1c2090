"""For how long the threads of this process compute at a stretch while calls are refused; for engines on the CPU.

As a rule whatever comes interrupts an engine, for a quick answer. In a crowd that is dear: some hundred times a second
the engine's thread and the others take turns, and each finds the caches full of the other's data. With long time
slices, and no thread that interrupts another, what comes meanwhile waits, and all of it is dealt with at once. How the
CPU is shared with other processes stays the kernel's to say.

Takes Linux 6.12, whose threads can have slices of a length of their own; nothing changes elsewhere. Built by `app`,
told by `admission`. Source: sched(7) for SCHED_BATCH, whose threads interrupt nobody; sched_setattr(2);
Documentation/scheduler/sched-eevdf.rst.
"""

import asyncio
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from contextvars import Context
from pathlib import Path

SLICE_S = 0.04
"""With 20 ms less is gained (docs/benchmarks.md)."""

CALM_S = 1.0
"""Without a refusal, until slices are as the kernel likes them again; at most twice as long."""

_SLICE_NS = round(SLICE_S * 1e9)

_NUMBERS = {"x86_64": (315, 314), "aarch64": (275, 274)}.get(platform.machine()) if sys.platform == "linux" else None
"""Of the system calls sched_getattr and sched_setattr, for which few C libraries have functions."""

_THREADS = Path("/proc/self/task")


class TimeSlices:
    """Use on the event loop.

    Args:
        wanted: else nothing is ever changed.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted and _NUMBERS is not None
        self._asked = False
        self._look: asyncio.TimerHandle | None = None  # while they are long

    def lengthen(self) -> None:
        """Until this was not called for `CALM_S`."""
        if not self._wanted:
            return
        self._asked = True
        if self._look is None:
            _lengthen_all()
            self._look_later()

    def restore(self) -> None:
        """At once; until they are lengthened again."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
            _restore_all()

    def _look_later(self) -> None:
        self._asked = False
        self._look = asyncio.get_running_loop().call_later(CALM_S, self._end_look, context=Context())  # of no call

    def _end_look(self) -> None:
        if self._asked:
            self._look_later()
        else:
            self.restore()


class _Attributes(ctypes.Structure):
    """`struct sched_attr`, as it was at first."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("slice_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


def _lengthen_all() -> None:
    """Of every thread, the engines' too, so that none has to be told from the others.

    Not of one that was given a policy of another kind, nor where the kernel has one length for all and so tells none.
    """
    for thread, attributes in _threads():
        if attributes.policy == os.SCHED_OTHER and attributes.slice_ns:
            _set(thread, attributes, os.SCHED_BATCH, _SLICE_NS)


def _restore_all() -> None:
    """Threads that were started meanwhile have inherited what the others have."""
    for thread, attributes in _threads():
        if (attributes.policy, attributes.slice_ns) == (os.SCHED_BATCH, _SLICE_NS):
            _set(thread, attributes, os.SCHED_OTHER, 0)  # as the kernel likes it


def _threads() -> Iterator[tuple[int, _Attributes]]:
    """Those of this process, by their ids. Without one that has just ended; none where a sandbox keeps them secret."""
    with suppress(OSError):
        for task in _THREADS.iterdir():
            attributes, thread = _Attributes(), int(task.name)
            if _system_call(0, thread, ctypes.byref(attributes), ctypes.sizeof(attributes), 0):
                yield thread, attributes


def _set(thread: int, attributes: _Attributes, policy: int, slice_ns: int) -> None:
    """All else of them stays; where a sandbox forbids it, these do too."""
    attributes.policy, attributes.slice_ns = policy, slice_ns
    _system_call(1, thread, ctypes.byref(attributes), 0)


def _system_call(which: int, *arguments: object) -> bool:
    """Whether it succeeds."""
    return _NUMBERS is not None and ctypes.CDLL(None).syscall(ctypes.c_long(_NUMBERS[which]), *arguments) == 0
