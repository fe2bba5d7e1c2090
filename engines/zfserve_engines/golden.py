"""Golden inputs: photos with the outputs the artefacts gave for them when the bundle was made.

Written by `zfserve export`, run by the server before it says it is ready. A runtime that computes something else (a
broken kernel, a wrong precision, rows mixed up in a batch) is found here instead of by users.
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
    """The engine gives other outputs than were recorded; it must not serve."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs with their outputs.

    Attributes:
        pixels: uint8 (n, H, W, 3), RGB.
        probabilities: float32 (n, K) for each precision the bundle holds.
    """

    pixels: npt.NDArray[np.uint8]
    probabilities: Mapping[Precision, npt.NDArray[np.float32]]


def write_golden(golden: Golden, folder: Path) -> Path:
    """Write `golden` into the bundle's folder; returns the file."""
    file = folder / GOLDEN
    arrays: dict[str, npt.NDArray[np.generic]] = {"pixels": golden.pixels}
    arrays |= {_PREFIX + precision: values for precision, values in golden.probabilities.items()}
    with file.open("wb") as opened:
        np.savez_compressed(opened, allow_pickle=False, **arrays)
    return file


def load_golden(bundle: Bundle) -> Golden:
    """Read a bundle's golden inputs.

    Raises:
        BundleError: the file is unreadable, lacks a precision the bundle holds, or its shapes do not fit the manifest.
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


def verify_engine(engine: Engine, bundle: Bundle) -> None:
    """Run the golden inputs, one by one and together, and compare with what was recorded.

    Raises:
        EngineDisagrees: some probability differs by more than the artefact's tolerance.
        BundleError: there are no usable golden inputs, or the bundle does not say what bfloat16 may be off by.
        EngineFailed: the engine gave up.
    """
    golden = load_golden(bundle)
    precision = engine.info.precision
    artefact = bundle.manifest.artefacts[precision]
    tolerance = artefact.bf16_tolerance if engine.info.bf16 else artefact.golden_tolerance
    if tolerance is None:
        raise BundleError(f"the bundle does not say what its {precision} graph may be off by in bf16; export it again")
    expected = golden.probabilities[precision]
    for rows in _batches(len(golden.pixels), engine.info.max_batch_size):
        found = engine.run(golden.pixels[rows]).probabilities
        if found.shape != expected[rows].shape:
            raise EngineDisagrees(
                f"the {precision} engine answers {found.shape} where {expected[rows].shape} was recorded; "
                "export the bundle again"
            )
        difference = float(np.abs(found - expected[rows]).max())
        # Written so that a NaN fails.
        if not difference <= tolerance:
            raise EngineDisagrees(
                f"the {precision} engine ({engine.info.runtime}, {engine.info.provider}) differs from the recorded "
                f"outputs by {difference:.3g} at batch size {len(found)}, and {tolerance:.3g} is allowed; "
                "export the bundle again, on this kind of machine if it stays"
            )


def _batches(count: int, max_batch_size: int) -> Iterator[slice]:
    """Each row alone, then all of them in batches as large as the engine takes."""
    for row in range(count):
        yield slice(row, row + 1)
    if max_batch_size > 1:
        for first in range(0, count, max_batch_size):
            yield slice(first, min(first + max_batch_size, count))
