"""What one file of a bundle in the making is worth, found out through the engine that will serve it; for `exporter`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from zfserve_engines.golden import verify_engine
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_runtime.bundle import AccuracyEntry, Bundle, ParityEntry, Precision
from zfserve_runtime.cpus import available_cpus

from zfserve_export.evaluation import evaluate_engine
from zfserve_export.parity import Reference, compare, require_parity, run_all
from zfserve_export.photos import LabelledPhotos

BATCH = 8


@dataclass(frozen=True, eq=False)
class Measurement:
    """How one file did.

    Attributes:
        accuracy: None where no validation photos were given.
        golden: probabilities of the golden inputs, float32 (n, K).
    """

    parity: tuple[ParityEntry, ...]
    accuracy: AccuracyEntry | None
    golden: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trials:
    """What every file of a bundle is run on.

    Attributes:
        tolerances: for the float graphs against the references; 8-bit ones are judged by their accuracy.
        golden_pixels: uint8 (n, H, W, 3).
    """

    references: Sequence[Reference]
    tolerances: Mapping[Precision, float]
    golden_pixels: NDArray[np.uint8]
    validation: LabelledPhotos | None


def measure(draft: Bundle, precision: Precision, trials: Trials, on_photos: Callable[[int], None]) -> Measurement:
    """Run one file of an unfinished bundle through the trials. `on_photos` hears of validation photos as they pass.

    Raises:
        ParityError: it differs from the network by more than its tolerance.
    """
    with closing(_open_engine(draft, precision)) as engine:
        parity = []
        for reference in trials.references:
            outputs = run_all(engine, reference.pixels)
            if precision in trials.tolerances:
                require_parity(precision, reference, outputs, trials.tolerances[precision])
            parity.append(compare(precision, reference, outputs))
        accuracy = None
        if trials.validation:
            score = evaluate_engine(engine, draft.manifest.input, trials.validation, on_photos)
            accuracy = AccuracyEntry(precision=precision, count=score.count, top1=score.top1, top5=score.top5)
        return Measurement(tuple(parity), accuracy, run_all(engine, trials.golden_pixels).probabilities)


def rehearse(draft: Bundle) -> None:
    """Start every file as the server will: a fresh engine has to reproduce the golden outputs.

    Raises:
        BundleError: it does not.
    """
    for precision in draft.manifest.artefacts:
        with closing(_open_engine(draft, precision)) as engine:
            verify_engine(engine, draft)


def _open_engine(draft: Bundle, precision: Precision) -> OnnxEngine:
    # On the CPU, whatever else is there: its arithmetic is the reference for other devices.
    return OnnxEngine(draft, precision, threads=available_cpus(), max_batch_size=BATCH)
