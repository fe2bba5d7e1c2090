"""ONNX Runtime without a service around it: what throughput and latency are compared with."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_runtime.bundle import Precision

from zfserve_bench.subject import Subject

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, eq=False)
class InProcess:
    """An engine and the batch it is given.

    Attributes:
        spinning: whether idle threads wait in a busy loop, as ONNX Runtime's do unless told otherwise.
        batch: uint8 (N, H, W, 3).
    """

    engine: OnnxEngine
    spinning: bool
    batch: npt.NDArray[np.uint8]

    def images_per_s(self, seconds: float) -> float:
        """Run for about `seconds`, at least once."""
        began = time.perf_counter()
        runs = 0
        while (elapsed := time.perf_counter() - began) < seconds or not runs:
            self.engine.run(self.batch)
            runs += 1
        return runs * len(self.batch) / elapsed

    def describe(self) -> str:
        return f"batches of {len(self.batch)}, {'spinning' if self.spinning else 'sleeping'} threads"


@contextmanager
def best_in_process(subject: Subject, precision: Precision, images: npt.NDArray[np.uint8]) -> Iterator[InProcess]:
    """The quickest way to run many images: each of `BATCH_SIZES`, with and without spinning threads, is tried several
    times, and its best try counts, for a disturbance only ever slows.

    Args:
        images: uint8 (n, H, W, 3), repeated as often as a batch needs.
    """
    batches = [np.resize(images, (size, *images.shape[1:])) for size in BATCH_SIZES]
    with ExitStack() as stack:
        ways = []
        for spinning in (True, False):
            engine = OnnxEngine(
                subject.bundle, precision, threads=subject.threads, max_batch_size=max(BATCH_SIZES), spinning=spinning
            )
            stack.callback(engine.close)
            ways += [InProcess(engine, spinning, batch) for batch in batches]
        speeds = [[way.images_per_s(subject.effort.try_s) for way in ways] for _ in range(subject.effort.tries)]
        fastest = np.max(speeds, axis=0).argmax()
        yield ways[fastest]
