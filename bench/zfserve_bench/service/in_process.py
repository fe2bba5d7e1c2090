"""Runs ONNX Runtime in this process, without a service, as the baseline for throughput."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_runtime.bundle import Precision

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.timing import times_per_s

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, eq=False)
class InProcess:
    """Holds an engine and the batch that it runs.

    Attributes:
        spinning: True if idle threads wait in a busy loop, which is ONNX Runtime's default.
        batch: uint8 (N, H, W, 3), RGB.
    """

    engine: OnnxEngine
    spinning: bool
    batch: npt.NDArray[np.uint8]

    def images_per_s(self, seconds: float) -> float:
        """Runs the batch for about `seconds`, at least once, and returns images per second."""
        return len(self.batch) * times_per_s(lambda: self.engine.run(self.batch), seconds)

    def describe(self) -> str:
        """Returns the batch size and the kind of threads in words."""
        return f"batches of {len(self.batch)}, {'spinning' if self.spinning else 'sleeping'} threads"


@contextmanager
def fastest_in_process(
    config: BenchmarkConfig, precision: Precision, images: npt.NDArray[np.uint8]
) -> Iterator[InProcess]:
    """Yields the fastest combination of one of `BATCH_SIZES` and spinning or sleeping threads.

    Each combination is tried several times. Its fastest try counts, because a disturbance can only slow it down.

    Args:
        images: uint8 (n, H, W, 3), RGB, repeated to fill a batch.
    """
    batches = [np.resize(images, (size, *images.shape[1:])) for size in BATCH_SIZES]
    with ExitStack() as stack:
        candidates = []
        for spinning in (True, False):
            engine = OnnxEngine(
                config.bundle, precision, threads=config.threads, max_batch_size=max(BATCH_SIZES), spinning=spinning
            )
            stack.callback(engine.close)
            candidates += [InProcess(engine, spinning, batch) for batch in batches]
        speeds = [
            [candidate.images_per_s(config.effort.try_s) for candidate in candidates]
            for _ in range(config.effort.tries)
        ]
        fastest = np.max(speeds, axis=0).argmax()
        yield candidates[fastest]
