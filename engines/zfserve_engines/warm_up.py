"""The first runs of a new engine, for every engine that runs the bundle's graph as it is."""

from collections.abc import Iterable

import numpy as np
from zfserve_runtime.bundle import BundleError, Manifest

from zfserve_engines.contract import Engine, OnWarming


def cpu_sizes(max_batch_size: int) -> tuple[int, ...]:
    """What an engine on a CPU is warmed up with: one photo, some, and as many as there can be."""
    return (1, min(8, max_batch_size), max_batch_size)


def warm_up(engine: Engine, manifest: Manifest, sizes: Iterable[int], on_warming: OnWarming) -> None:
    """Run black photos in batches of `sizes`: the largest first, so that memory is claimed in one piece.

    Raises:
        BundleError: the outputs have other widths than the manifest says.
        EngineFailed: the engine gave up.
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
