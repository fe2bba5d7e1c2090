"""A setting of the C library's allocator, for the whole process. Called by `serve_command`."""

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
