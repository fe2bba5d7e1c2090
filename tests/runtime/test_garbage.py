"""What the garbage collector has to look through."""

import subprocess
import sys

PROGRAM = """
import gc
from zfserve_runtime.garbage import set_modules_aside

class Circle:
    pass

set_modules_aside()
assert gc.get_freeze_count() > 1000, "modules and what they hold"
assert len(gc.get_objects()) < 100
gone = Circle()
gone.itself = gone
del gone
assert gc.collect() >= 1, "what comes later is collected as ever"
"""


def test_modules_are_set_aside_and_what_comes_later_is_not() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)  # a process of its own, as there is no way back
