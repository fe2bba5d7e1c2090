"""The exporter turns a trained network into a bundle. `export_command` calls it.

Its steps are: write weights and graphs, measure parity, accuracy and golden outputs of each graph, verify each graph on
a new engine, and rename the draft.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from zfserve_engines.golden import Golden, write_golden
from zfserve_model.checkpoint import Checkpoint, save_checkpoint, weights_fingerprint
from zfserve_model.network_layer_table import layer_table
from zfserve_model.networks import Network
from zfserve_runtime.bundle import (
    NAME_PATTERN,
    WEIGHTS,
    Artefact,
    Bundle,
    BundleError,
    ClassEntry,
    InputSpec,
    LayerEntry,
    Manifest,
    Precision,
    load_bundle,
)

from zfserve_export.bundle_writer import bundle_draft, next_version, publish
from zfserve_export.measurement import BATCH, Measurement, MeasurementInputs, measure, verify_graphs
from zfserve_export.onnx_graph import export_graph, half_network
from zfserve_export.parity import Reference, make_reference, noise_images, require_half_range
from zfserve_export.photos import LabelledPhotos, input_spec, read_batches
from zfserve_export.quantize import quantize_files

ARTEFACTS: dict[Precision, Artefact] = {
    # Measured differences: 1e-6 between CPUs, which sum in another order; up to 1e-3 with TF32 on a GPU, which rounds
    # inputs to 11 bits; 0.4 where red and blue are swapped. bf16 rounds everything to 8 bits, which gave 0.003 for the
    # default network and 0.04 for one with random weights.
    "fp32": Artefact(file="model.onnx", golden_tolerance=2e-3, bf16_tolerance=5e-2),
    # float16 has 11 significant bits. A difference of 5e-4 was measured on a CPU, which rounds fewer values than a GPU.
    "fp16": Artefact(file="model.fp16.onnx", golden_tolerance=1e-2),
    # Integer sums are the same on every CPU, but kernels may round to another of the 256 steps (0.002 was measured
    # between kernels). Kernels that saturate are wrong by 0.16 (measurements in docs/bundle.md). Between GPUs 0.005
    # was measured.
    "int8": Artefact(file="model.int8.onnx", golden_tolerance=5e-2),
    "int8-symmetric": Artefact(file="model.int8-symmetric.onnx", golden_tolerance=5e-2),
}
INT8_PRECISIONS: tuple[Precision, ...] = ("int8", "int8-symmetric")
FP16_TOLERANCE = 1e-2
"""The largest allowed difference between the network and the fp16 graph: of a probability, or of a feature relative to
the largest feature. It is twenty times the difference of the default network, because other networks can be more
sensitive."""
PARITY_PHOTOS = 64
CALIBRATION_PHOTOS = 256
NOISE_IMAGES = 8
GOLDEN_INPUTS = 4
"""The number of golden inputs of each kind: photos, if there are any, and noise."""

OnProgress = Callable[[str, int, int], None]
"""A function that takes the name of a step, the amount of work since the last call, and the total amount."""


@dataclass(frozen=True, eq=False)
class ExportPlan:
    """Describes where a bundle is written, and on which photos it is measured.

    Attributes:
        models: the folder of all models. The bundle becomes `models/name/version`.
        name: the name of the model.
        version: the version. None means the next whole number.
        tolerance: the largest difference of a probability between the network and the fp32 graph.
        fp16: True to write a float16 graph.
        photos: the photos for parity and golden inputs. Without photos, only noise is used.
        calibration: the photos that set the ranges of INT8's activations. At most `CALIBRATION_PHOTOS` of them are
            used. Without photos, no INT8 files are written.
        validation: the photos for the accuracy figures. None leaves the figures out.
    """

    models: Path
    name: str
    version: str | None = None
    tolerance: float = 1e-4
    fp16: bool = True
    photos: tuple[Path, ...] = ()
    calibration: tuple[Path, ...] = ()
    validation: LabelledPhotos | None = None

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("version", self.version)):
            if value is not None and not re.fullmatch(NAME_PATTERN, value):
                raise BundleError(
                    f"the {what} {value!r} cannot be a folder's name; use letters, digits, '.', '_' and '-'"
                )

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions of the graphs to write."""
        eight_bits = INT8_PRECISIONS if self.calibration else ()
        return ("fp32", "fp16", *eight_bits) if self.fp16 else ("fp32", *eight_bits)


def export_bundle(checkpoint: Checkpoint, plan: ExportPlan, on_progress: OnProgress = lambda *step: None) -> Bundle:
    """Writes a bundle and reads it back. An error or an interrupt leaves no files.

    Args:
        checkpoint: a checkpoint whose network is in evaluation mode and has no batch norm.
        plan: where to write, and what to measure on.
        on_progress: a function that is called as the steps advance.

    Raises:
        ParityError: a float graph differs from the network by more than its tolerance, or float16 is too narrow.
        GraphError: a graph is not valid ONNX, or a weight is too large for float16.
        BundleError: the version exists, or an engine does not reproduce its own golden outputs.
        EngineFailed: ONNX Runtime cannot run a graph.
        PhotoError: a photo cannot be read.
        OSError: the folder cannot be written.
    """
    target = plan.models / plan.name / (plan.version or next_version(plan.models / plan.name))
    with bundle_draft(target) as folder:
        draft = Bundle(folder, describe_bundle(checkpoint, plan, target.name))
        _write_float_files(checkpoint, draft, on_progress)
        inputs = _prepare_inputs(checkpoint, plan, draft.manifest.input, on_progress)
        if plan.fp16:
            _write_half_file(checkpoint, draft, inputs.references, on_progress)
        if plan.calibration:
            _write_int8_files(draft, plan, on_progress)
        found: dict[Precision, Measurement] = {}
        for precision in draft.manifest.artefacts:
            photos = len(plan.validation.paths) if plan.validation else 0
            advance = partial(_advance, on_progress, f"accuracy of {precision}", photos)
            found[precision] = measure(draft, precision, inputs, advance)
        write_golden(Golden(inputs.golden_pixels, {name: one.golden for name, one in found.items()}), folder)
        verify_graphs(draft)
        figures = {
            "parity": tuple(entry for one in found.values() for entry in one.parity),
            "accuracy": tuple(one.accuracy for one in found.values() if one.accuracy),
        }
        publish(folder, target, draft.manifest.model_copy(update=figures))
    return load_bundle(target)


def describe_bundle(checkpoint: Checkpoint, plan: ExportPlan, version: str) -> Manifest:
    """Returns the manifest without the digests and the measured figures."""
    spec = checkpoint.network.spec
    return Manifest(
        name=plan.name,
        version=version,
        architecture=spec.architecture,
        feature_width=spec.hidden_width,
        classes=tuple(
            ClassEntry(class_id=class_id, label=label)
            for class_id, label in zip(checkpoint.class_ids, checkpoint.labels, strict=True)
        ),
        input=input_spec(checkpoint.preprocessing),
        layers=tuple(
            LayerEntry(**asdict(row), stage=f"stage{row.name[-1]}") for row in layer_table(checkpoint.network)
        ),
        artefacts={precision: ARTEFACTS[precision] for precision in plan.precisions},
        fingerprint=weights_fingerprint(checkpoint.network),
        files={},
    )


def smallest_exact_dtype(network: Network) -> torch.dtype:
    """Returns float16 if it represents every weight exactly, for example if the file was float16. Otherwise float32.

    The weights must stay exact, so that the worker, which reads this file, computes the same fingerprint.
    """
    exact = all(torch.equal(tensor.half().float(), tensor) for tensor in network.state_dict().values())
    return torch.float16 if exact else torch.float32


def sample_evenly(photos: tuple[Path, ...], count: int) -> tuple[Path, ...]:
    """Selects at most `count` photos at even distances, so that a sample of a list sorted by class has all classes."""
    if len(photos) <= count:
        return photos
    return tuple(photos[index * len(photos) // count] for index in range(count))


def _write_float_files(checkpoint: Checkpoint, draft: Bundle, on_progress: OnProgress) -> None:
    on_progress("float graph", 0, 1)
    save_checkpoint(checkpoint, draft.folder / WEIGHTS, smallest_exact_dtype(checkpoint.network))
    model = export_graph(checkpoint.network, checkpoint.preprocessing, draft.manifest.fingerprint)
    onnx.save(model, draft.artefact("fp32"))
    on_progress("float graph", 1, 1)


def _write_half_file(
    checkpoint: Checkpoint, draft: Bundle, references: Sequence[Reference], on_progress: OnProgress
) -> None:
    on_progress("fp16 graph", 0, 1)
    for reference in references:
        require_half_range(checkpoint, reference)
    network = half_network(checkpoint.network)
    onnx.save(export_graph(network, checkpoint.preprocessing, draft.manifest.fingerprint), draft.artefact("fp16"))
    on_progress("fp16 graph", 1, 1)


def _write_int8_files(draft: Bundle, plan: ExportPlan, on_progress: OnProgress) -> None:
    photos = sample_evenly(plan.calibration, CALIBRATION_PHOTOS)
    batches = _read(photos, draft.manifest.input, "INT8 calibration", on_progress)
    destinations = {precision: draft.artefact(precision) for precision in INT8_PRECISIONS}
    quantize_files(draft.artefact("fp32"), destinations, batches, draft.manifest.fingerprint)


def _prepare_inputs(
    checkpoint: Checkpoint, plan: ExportPlan, spec: InputSpec, on_progress: OnProgress
) -> MeasurementInputs:
    available = (*plan.photos, *plan.calibration, *(plan.validation.paths if plan.validation else ()))
    photos = sample_evenly(tuple(dict.fromkeys(available)), PARITY_PHOTOS)
    references: list[Reference] = []
    if photos:
        pixels = np.concatenate(list(_read(photos, spec, "photos for parity", on_progress)))
        references.append(make_reference(checkpoint, "photos", pixels))
    references.append(make_reference(checkpoint, "noise", noise_images(spec, NOISE_IMAGES)))
    golden_pixels = np.concatenate([reference.pixels[:GOLDEN_INPUTS] for reference in references])
    return MeasurementInputs(
        references, {"fp32": plan.tolerance, "fp16": FP16_TOLERANCE}, golden_pixels, plan.validation
    )


def _read(photos: tuple[Path, ...], spec: InputSpec, step: str, on_progress: OnProgress) -> Iterator[NDArray[np.uint8]]:
    for batch in read_batches(photos, spec, BATCH):
        yield batch
        on_progress(step, len(batch), len(photos))


def _advance(on_progress: OnProgress, step: str, total: int, photos: int) -> None:
    on_progress(step, photos, total)
