"""Warms up a new engine. The engines on ONNX Runtime and on OpenVINO call it when they are opened."""

from collections.abc import Iterable

import numpy as np
from zfserve_runtime.bundle import BundleError, Manifest

from zfserve_engines.contract import Engine, OnWarming


def cpu_warm_up_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes that warm up an engine on the CPU: one photo, at most 8, and the largest batch."""
    return (1, min(8, max_batch_size), max_batch_size)


def warm_up(engine: Engine, manifest: Manifest, sizes: Iterable[int], on_warming: OnWarming) -> None:
    """Runs black photos in batches of `sizes`. The largest batch comes first, so that memory is allocated in one piece.

    Raises:
        BundleError: the shapes of the outputs do not fit the manifest.
        EngineFailed: the engine failed on a batch.
    """
    spec = manifest.input
    descending = sorted(set(sizes), reverse=True)
    for done, size in enumerate(descending):
        on_warming(done, len(descending))
        outputs = engine.run(np.zeros((size, spec.height, spec.width, 3), np.uint8))
        for name, width in manifest.output_widths.items():
            values = getattr(outputs, name)
            if values.shape != (size, width):
                raise BundleError(
                    f"the graph's output {name!r} has shape {values.shape} for {size} photos where the manifest "
                    f"says {(size, width)}; export the bundle again"
                )
