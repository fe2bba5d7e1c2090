"""What glibc keeps, seen in the memory of a process of its own."""

import subprocess
import sys

PROGRAM = """
import ctypes, resource, sys
from zfserve_server.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def use() -> None:
    blocks = [libc.malloc(150_528) for _ in range(20)]
    for block in blocks:
        ctypes.memset(block, 1, 150_528)
    for block in blocks:
        libc.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(setting: str) -> int:
    program = [sys.executable, "-c", PROGRAM, setting]
    return int(subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_freed_pixels_are_used_again_without_page_faults() -> None:
    assert page_faults("keep") < 1_000 < 10_000 < page_faults("leave")
