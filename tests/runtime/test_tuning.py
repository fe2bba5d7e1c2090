"""Tests a process after it was tuned. Tuning cannot be undone, so a test that tunes starts a process of its own."""

import os
import subprocess
import sys

from zfserve_runtime.tuning import disable_event_engine_listener

FREEZE = """
import gc
from zfserve_runtime.tuning import freeze_modules

class Cycle:
    pass

freeze_modules()
assert gc.get_freeze_count() > 1000, "modules and what they hold"
assert len(gc.get_objects()) < 100
garbage = Cycle()
garbage.itself = garbage
del garbage
assert gc.collect() >= 1, "later objects are collected as before"
"""

ALLOCATE = """
import ctypes, resource, sys
from zfserve_runtime.tuning import keep_freed_memory

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

LOOP = """
import asyncio
from zfserve_runtime.tuning import run_on_uvloop

async def main():
    print(type(asyncio.get_running_loop()).__module__)

run_on_uvloop(main())
"""

IMPORT = """
import os
before = dict(os.environ)
import zfserve_runtime
import zfserve_runtime.tuning
import zfserve_runtime.grpc.server
assert dict(os.environ) == before
"""


def output_of(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_modules_are_frozen_and_later_objects_are_not() -> None:
    output_of(FREEZE)


def test_freed_pixels_are_used_again_without_page_faults() -> None:
    assert int(output_of(ALLOCATE, "keep")) < 1_000 < 10_000 < int(output_of(ALLOCATE, "leave"))


def test_the_event_loop_is_that_of_uvloop() -> None:
    assert output_of(LOOP) == "uvloop"


def test_an_import_of_the_package_leaves_the_environment_alone() -> None:
    output_of(IMPORT)


def test_the_value_that_an_operator_set_for_grpc_stays() -> None:
    before = dict(os.environ)
    for given, kept in (({}, "-event_engine_listener"), ({"GRPC_EXPERIMENTS": ""}, "")):
        environment: dict[str, str] = dict(given)
        disable_event_engine_listener(environment)
        assert environment["GRPC_EXPERIMENTS"] == kept
    assert dict(os.environ) == before
