"""Runs an engine on one CPU in its own process, as the baseline for a replica.

`PinnedEngine` starts `python -m zfserve_bench.fleet.pinned_engine MODEL PRECISION CPU`. The process stays up between
measurements. Each line on its standard input is a number of seconds to run; it answers with images per second.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_runtime.bundle import Bundle, Precision, load_bundle

from zfserve_bench.inputs import random_images
from zfserve_bench.service.in_process import InProcess

BATCH = 16
"""The largest batch of a server by default."""


class PinnedEngine:
    """Starts the process and sends it runs. Leaving the block ends the process."""

    def __init__(self, bundle: Bundle, precision: Precision, cpu: int) -> None:
        command = [sys.executable, "-m", "zfserve_bench.fleet.pinned_engine", str(bundle.folder), precision, str(cpu)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, seconds: float) -> None:
        """Starts a run of about `seconds`. Call `result` next."""
        assert self._process.stdin is not None, "opened above"
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def result(self) -> float:
        """Waits for the end of the run and returns images per second. Raises RuntimeError if the process died."""
        assert self._process.stdout is not None, "opened above"
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("an engine's process died")
        return float(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()  # it holds nothing that needs a clean end
        self._process.communicate()


def images_per_s(engines: Sequence[PinnedEngine], seconds: float) -> float:
    """Runs all engines at the same time and returns the sum of their images per second."""
    for engine in engines:
        engine.begin(seconds)
    return sum(engine.result() for engine in engines)


def _run(model: Path, precision: Precision, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    bundle = load_bundle(model)
    engine = OnnxEngine(bundle, precision, threads=1, max_batch_size=BATCH)
    images = random_images(bundle.manifest.input)
    measured = InProcess(engine, spinning=False, batch=np.resize(images, (BATCH, *images.shape[1:])))
    for line in sys.stdin:
        sys.stdout.write(f"{measured.images_per_s(float(line))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))  # type: ignore[arg-type]
