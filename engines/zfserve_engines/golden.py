"""Writes golden inputs, and verifies engines with them. They are photos with the outputs that the export recorded.

`zfserve export` writes them. The server runs them before it reports ready. So the server finds a runtime that computes
something else (a broken kernel, a wrong precision, rows of a batch in the wrong order) before users do.
"""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from zfserve_runtime.bundle import GOLDEN, Bundle, BundleError, Precision

from zfserve_engines.contract import Engine

_PREFIX = "probabilities_"


class EngineDisagrees(BundleError):
    """The engine's outputs differ from the recorded ones. The engine must not serve."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Holds the golden inputs and their recorded outputs.

    Attributes:
        pixels: uint8 (n, H, W, 3), RGB.
        probabilities: the recorded outputs, float32 (n, K), by the precision of the graph.
    """

    pixels: npt.NDArray[np.uint8]
    probabilities: Mapping[Precision, npt.NDArray[np.float32]]


def write_golden(golden: Golden, folder: Path) -> Path:
    """Writes `golden` into the bundle's folder and returns the file."""
    file = folder / GOLDEN
    arrays: dict[str, npt.NDArray[np.generic]] = {"pixels": golden.pixels}
    arrays |= {_PREFIX + precision: values for precision, values in golden.probabilities.items()}
    with file.open("wb") as opened:
        np.savez_compressed(opened, allow_pickle=False, **arrays)
    return file


def load_golden(bundle: Bundle) -> Golden:
    """Reads the golden inputs of a bundle.

    Raises:
        BundleError: the file cannot be read, lacks a precision of the bundle, or has shapes that do not fit the
            manifest.
    """
    manifest = bundle.manifest
    try:
        with (bundle.folder / GOLDEN).open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            pixels = arrays["pixels"]
            probabilities = {precision: arrays[_PREFIX + precision] for precision in manifest.artefacts}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{GOLDEN} cannot be read or is incomplete; export the bundle again") from error
    wanted = (len(pixels), manifest.input.height, manifest.input.width, 3)
    fits = pixels.dtype == np.uint8 and pixels.shape == wanted and len(pixels) > 0
    if not fits or any(values.shape != (len(pixels), len(manifest.classes)) for values in probabilities.values()):
        raise BundleError(f"{GOLDEN} does not fit the manifest; export the bundle again")
    return Golden(pixels, probabilities)


def verify_engine(engine: Engine, bundle: Bundle, photos: int | None = None) -> None:
    """Runs the golden inputs, one by one and in batches, and compares the outputs with the recorded ones.

    Args:
        engine: the engine to verify.
        bundle: the bundle that it runs.
        photos: runs only this many golden inputs, in one batch if the engine takes it. None: all, as above.

    Raises:
        EngineDisagrees: a probability differs by more than the tolerance of the artefact.
        BundleError: the bundle has no usable golden inputs, or has no tolerance for bfloat16.
        EngineFailed: the engine failed on a batch.
    """
    golden = load_golden(bundle)
    precision = engine.info.precision
    artefact = bundle.manifest.artefacts[precision]
    tolerance = artefact.bf16_tolerance if engine.info.bf16 else artefact.golden_tolerance
    if tolerance is None:
        raise BundleError(f"the bundle has no tolerance for its {precision} graph in bf16; export it again")
    expected = golden.probabilities[precision]
    largest = engine.info.max_batch_size
    batches = _batches(len(golden.pixels), largest) if photos is None else [slice(0, min(photos, largest))]
    for rows in batches:
        found = engine.run(golden.pixels[rows]).probabilities
        if found.shape != expected[rows].shape:
            raise EngineDisagrees(
                f"the {precision} engine answers {found.shape} where {expected[rows].shape} was recorded; "
                "export the bundle again"
            )
        difference = float(np.abs(found - expected[rows]).max())
        # With this form of the comparison, a NaN fails.
        if not difference <= tolerance:
            raise EngineDisagrees(
                f"the {precision} engine ({engine.info.runtime}, {engine.info.provider}) differs from the recorded "
                f"outputs by {difference:.3g} at batch size {len(found)}, and {tolerance:.3g} is allowed; "
                "export the bundle again; if the error remains, export it on this kind of machine"
            )


def _batches(count: int, max_batch_size: int) -> Iterator[slice]:
    """Yields each row alone, then all rows in batches as large as the engine takes."""
    for row in range(count):
        yield slice(row, row + 1)
    if max_batch_size > 1:
        for first in range(0, count, max_batch_size):
            yield slice(first, min(first + max_batch_size, count))
