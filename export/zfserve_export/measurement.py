"""This module measures one graph of a draft bundle through the engine that will serve it. `exporter` calls it."""

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
    """Holds the figures of one graph.

    Attributes:
        accuracy: the accuracy on validation photos; None where there are none.
        golden: the probabilities of the golden inputs, float32 (n, K).
    """

    parity: tuple[ParityEntry, ...]
    accuracy: AccuracyEntry | None
    golden: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trials:
    """Holds the inputs that every graph of a bundle is measured on.

    Attributes:
        tolerances: the tolerance of each float graph against the references. INT8 graphs are judged by their accuracy.
        golden_pixels: the golden inputs, uint8 (n, H, W, 3).
    """

    references: Sequence[Reference]
    tolerances: Mapping[Precision, float]
    golden_pixels: NDArray[np.uint8]
    validation: LabelledPhotos | None


def measure(draft: Bundle, precision: Precision, trials: Trials, on_photos: Callable[[int], None]) -> Measurement:
    """Runs one graph of a draft bundle on the trials. `on_photos` is called with numbers of validated photos.

    Raises:
        ParityError: the graph differs from the network by more than its tolerance.
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
    """Opens a new engine for every graph, as the server will. Each must reproduce the golden outputs.

    Raises:
        BundleError: an engine does not reproduce them.
    """
    for precision in draft.manifest.artefacts:
        with closing(_open_engine(draft, precision)) as engine:
            verify_engine(engine, draft)


def _open_engine(draft: Bundle, precision: Precision) -> OnnxEngine:
    # The CPU is used even where there is a GPU: its arithmetic is the reference for other devices.
    return OnnxEngine(draft, precision, threads=available_cpus(), max_batch_size=BATCH)
