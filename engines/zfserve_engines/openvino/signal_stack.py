"""Preserves the stack on which a thread's signal handlers run. `engine` calls it when it opens OpenVINO.

OpenVINO gives the thread that opens it another signal stack (sigaltstack(2)), and frees that stack when it is closed.
Suppose that two engines are closed in the order in which they were opened. Then the thread keeps the stack of the first
engine, which is already freed. The next signal, such as SIGTERM, causes a segmentation fault. This was seen with
OpenVINO 2026.4.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Mirrors the struct `stack_t` of signal.h on Linux."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


@contextmanager
def preserved_signal_stack() -> Iterator[None]:
    """Restores this thread's signal stack when the block ends. If it had none, it has none again."""
    before = _Stack()
    change = ctypes.CDLL(None, use_errno=True).sigaltstack
    if change(None, ctypes.byref(before)) != 0:
        raise OSError(ctypes.get_errno(), "sigaltstack")
    try:
        yield
    finally:
        change(ctypes.byref(before), None)
