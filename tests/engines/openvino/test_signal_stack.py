"""Tests that a process handles signals after it opened and closed OpenVINO."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from zfserve_runtime.bundle import Bundle

PROGRAM = """
import os, signal, sys
from pathlib import Path
from zfserve_runtime.bundle import load_bundle
from zfserve_engines.openvino.engine import OpenVinoEngine

bundle = load_bundle(Path(sys.argv[1]))
engines = [OpenVinoEngine(bundle, "fp32", threads=1, max_batch_size=2) for _ in range(2)]
for engine in engines if sys.argv[2] == "oldest first" else reversed(engines):
    engine.close()
signal.signal(signal.SIGTERM, lambda number, frame: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("order", ["oldest first", "newest first"])
def test_signals_are_handled_after_engines_were_closed(colour_bundle: Callable[..., Bundle], order: str) -> None:
    # The program runs in another process, because a fault would end the process.
    command = [sys.executable, "-c", PROGRAM, str(colour_bundle().folder), order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
