"""Tunes the whole process: gRPC's polling, the event loop, the garbage collector and the C library's allocator.

The commands `serve` and `worker` call it, and the server calls it after it has unloaded a model. This module must not
import grpc: see `disable_event_engine_listener`.
"""

import ctypes
import gc
import os
from collections.abc import Coroutine, MutableMapping

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
"""Numbers of two parameters of glibc's allocator. Source: mallopt(3)."""

KEPT_BYTES = 32 * 1024 * 1024


def disable_event_engine_listener(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets `GRPC_EXPERIMENTS` so that one thread reads the bytes of a call and delivers it, as in gRPC until 1.79.

    By default gRPC uses a pool of four threads. Passing a call between threads takes a fifth of the time of a refused
    call (docs/measurements/changes.md). A value that is already set stays, even an empty one. gRPC reads the variable
    when it is first imported, so call this function before. gRPC will remove the experiment one day. Then
    tests/runtime/grpc/test_polling.py fails.
    """
    environment.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")


def run_on_uvloop(main: Coroutine[None, None, None]) -> None:
    """Runs `main` on uvloop's event loop, which answers a lone request 0.15 ms sooner than asyncio's own.

    Source of the figure: docs/measurements/changes.md. Only the server's extra installs uvloop.
    """
    import uvloop

    uvloop.run(main)


def freeze_modules() -> None:
    """Excludes all present objects from garbage collection. Call it after the modules are imported: they stay anyway.

    A collection that includes them stops every thread, the event loop too, for 10 to 30 ms in the server. In the
    worker, which has PyTorch, it takes 100 ms. A collection of the later objects alone takes 1 ms.
    """
    gc.freeze()


def keep_freed_memory() -> bool:
    """Lets glibc keep up to `KEPT_BYTES` of freed memory. Returns False if the C library is not glibc.

    By default the 150 KB of a request's pixels go back to the kernel when they are freed, and the page faults of the
    next request take 0.1 ms, as `zfserve bench latency` measured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(parameter, KEPT_BYTES) == 1 for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))


def release_freed_memory() -> bool:
    """Gives freed memory back to the kernel. Returns False if there was none to give back.

    Call it after a model was unloaded. It takes milliseconds, and other threads that need memory may wait for it. So
    call it in a thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1
