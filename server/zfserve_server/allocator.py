"""The C library's allocator, for the whole process. Called by `serve_command` and `model_watch`."""

import ctypes

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
"""Source: mallopt(3)."""

KEPT_BYTES = 32 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Let glibc keep up to `KEPT_BYTES` of freed memory; False where there is no glibc.

    By default a request's 150 KB of pixels go back to the kernel when they are freed, and the next request pays for the
    page faults: 0.1 ms, measured by `zfserve bench latency`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(parameter, KEPT_BYTES) == 1 for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))


def release_freed_memory() -> bool:
    """Give back to the kernel what is freed, as after a network is unloaded; False where there is nothing to give.

    Takes milliseconds, in which other threads may wait for memory; call it in a thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1
