"""The stack that a thread's signal handlers run on, kept as it was. Used where OpenVINO is opened.

OpenVINO gives the thread that opens it a signal stack of its own (sigaltstack(2)), and frees it when it is closed. Two
that are closed in the order in which they were opened leave the thread with the first one's, which is gone: the next
signal, a SIGTERM say, is then a segmentation fault. Seen with OpenVINO 2026.4.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of signal.h, as Linux has it."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread back its own signal stack, or none, when the block ends."""
    before = _Stack()
    change = ctypes.CDLL(None, use_errno=True).sigaltstack
    if change(None, ctypes.byref(before)) != 0:
        raise OSError(ctypes.get_errno(), "sigaltstack")
    try:
        yield
    finally:
        change(ctypes.byref(before), None)
