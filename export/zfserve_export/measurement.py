"""This module measures one graph of a draft bundle with the engine `onnx-cpu`. `exporter` calls it."""

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
        parity: the comparison with the network, one entry for each kind of input.
        accuracy: the accuracy on validation photos. None if there are no such photos.
        golden: the probabilities of the golden inputs, float32 (n, K).
    """

    parity: tuple[ParityEntry, ...]
    accuracy: AccuracyEntry | None
    golden: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MeasurementInputs:
    """Holds the inputs that every graph of a bundle is measured on.

    Attributes:
        references: photos and noise, with the outputs of the network.
        tolerances: the largest allowed difference of each float graph from the references. INT8 graphs have none,
            because only their accuracy counts.
        golden_pixels: the golden inputs, uint8 (n, H, W, 3).
        validation: the photos for the accuracy. None leaves the accuracy out.
    """

    references: Sequence[Reference]
    tolerances: Mapping[Precision, float]
    golden_pixels: NDArray[np.uint8]
    validation: LabelledPhotos | None


def measure(
    draft: Bundle, precision: Precision, inputs: MeasurementInputs, on_photos: Callable[[int], None]
) -> Measurement:
    """Measures one graph of a draft bundle on `inputs`.

    `on_photos` is called with the number of validation photos that were classified since its last call.

    Raises:
        ParityError: the graph differs from the network by more than its tolerance.
    """
    with closing(_open_engine(draft, precision)) as engine:
        parity = []
        for reference in inputs.references:
            outputs = run_all(engine, reference.pixels)
            if precision in inputs.tolerances:
                require_parity(precision, reference, outputs, inputs.tolerances[precision])
            parity.append(compare(precision, reference, outputs))
        accuracy = None
        if inputs.validation:
            score = evaluate_engine(engine, draft.manifest.input, inputs.validation, on_photos)
            accuracy = AccuracyEntry(precision=precision, count=score.count, top1=score.top1, top5=score.top5)
        return Measurement(tuple(parity), accuracy, run_all(engine, inputs.golden_pixels).probabilities)


def verify_graphs(draft: Bundle) -> None:
    """Opens a new engine for every graph, as the server does. Each engine must reproduce the golden outputs.

    Raises:
        BundleError: an engine does not reproduce the golden outputs.
    """
    for precision in draft.manifest.artefacts:
        with closing(_open_engine(draft, precision)) as engine:
            verify_engine(engine, draft)


def _open_engine(draft: Bundle, precision: Precision) -> OnnxEngine:
    # The engine runs on the CPU even if there is a GPU, because the CPU's arithmetic is the reference for other
    # devices.
    batch_size = draft.manifest.fixed_batch_size or BATCH
    return OnnxEngine(draft, precision, threads=available_cpus(), max_batch_size=batch_size)
