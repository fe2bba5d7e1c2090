"""The exporter turns a source into a bundle. `export_command` calls it.

Its steps are: wrap the source's ONNX model, compare it with the source, write the fp16 and INT8 graphs, measure parity,
accuracy and golden outputs of each graph, verify each graph on a new engine, and rename the draft.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from zfserve_engines.golden import Golden, write_golden
from zfserve_model.explanation.rules import forward_obstacle, projection_rule
from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.graph import Graph
from zfserve_model.importing.fingerprint import graph_fingerprint
from zfserve_model.importing.importer import import_graph
from zfserve_model.layers.layer_table import layer_table
from zfserve_runtime.bundle import (
    GRAPH,
    NAME_PATTERN,
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

from zfserve_export.activation_range import require_half_range
from zfserve_export.bundle_writer import bundle_draft, next_version, publish
from zfserve_export.graph_optimization import optimized
from zfserve_export.half_precision import convert_to_half
from zfserve_export.measurement import (
    BATCH,
    Measurement,
    MeasurementInputs,
    measure,
    verify_graphs,
)
from zfserve_export.onnx_graph import check_graph, describe_model
from zfserve_export.onnx_wrap import WrappedNetwork, wrap
from zfserve_export.parity import ParityCheck, ParityError, noise_images
from zfserve_export.photos import LabelledPhotos, input_spec, read_batches
from zfserve_export.quantize import quantize_files
from zfserve_export.sources.source import Source

ARTEFACTS: dict[Precision, Artefact] = {
    # Measured differences: 1e-6 between CPUs, which sum in another order; up to 1e-3 with TF32 on a GPU, which rounds
    # inputs to 11 bits; 0.4 where red and blue are swapped. bf16 rounds everything to 8 bits, which gave 0.003 for the
    # default network and 0.04 for one with random weights.
    "fp32": Artefact(file=GRAPH, golden_tolerance=2e-3, bf16_tolerance=5e-2),
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

OnWarning = Callable[[str], None]
"""A function that takes a sentence about something that the user should know."""


@dataclass(frozen=True, eq=False)
class ExportPlan:
    """Describes where a bundle is written, and on which photos it is measured.

    Attributes:
        models: the folder of all models. The bundle becomes `models/name/version`.
        name: the name of the model.
        version: the version. None means the next whole number.
        tolerance: the largest difference between the network and the fp32 graph, of a probability, or of a logit or
            feature relative to the largest one.
        fp16: True to write a float16 graph. None writes it only where float16 can hold the network.
        photos: the photos for parity and golden inputs. Without photos, only noise is used.
        calibration: the photos that set the ranges of INT8's activations. At most `CALIBRATION_PHOTOS` of them are
            used. Without photos, no INT8 files are written.
        validation: the photos for the accuracy figures. None leaves the figures out.
    """

    models: Path
    name: str
    version: str | None = None
    tolerance: float = 1e-4
    fp16: bool | None = None
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
        return ("fp32", *eight_bits) if self.fp16 is False else ("fp32", "fp16", *eight_bits)


def export_bundle(
    source: Source,
    plan: ExportPlan,
    on_progress: OnProgress = lambda *step: None,
    on_warning: OnWarning = lambda sentence: None,
) -> Bundle:
    """Writes a bundle and reads it back. An error or an interrupt leaves no files.

    Args:
        source: the network, and what is known about it.
        plan: where to write, and what to measure on.
        on_progress: a function that is called as the steps advance.
        on_warning: a function that is told if a file that the plan leaves open is left out.

    Raises:
        ParityError: a float graph differs from the network by more than its tolerance. Or the plan wants a float16
            graph, and float16 is too narrow.
        GraphError: the network cannot be served. Or the plan wants a float16 graph, and there can be none.
        BundleError: the version exists, or an engine does not reproduce its own golden outputs.
        EngineFailed: ONNX Runtime cannot run a graph.
        PhotoError: a photo cannot be read.
        OSError: the folder cannot be written.
    """
    target = plan.models / plan.name / (plan.version or next_version(plan.models / plan.name))
    with bundle_draft(target) as folder:
        on_progress("float graph", 0, 1)
        wrapped, graph = _wrap_and_import(source)
        draft = Bundle(folder, describe_bundle(source, wrapped, graph, plan, target.name))
        onnx.save(wrapped.model, draft.artefact("fp32"))
        on_progress("float graph", 1, 1)
        inputs = _prepare_inputs(_parity_check(source, wrapped, graph, plan, draft.manifest), plan, on_progress)
        model = optimized(wrapped.model) if len(draft.manifest.artefacts) > 1 else wrapped.model
        if plan.fp16 is not False:
            draft = _write_half(model, draft, plan, inputs, on_progress, on_warning)
        if plan.calibration:
            _write_int8(model, draft, plan.calibration, on_progress)
        publish(folder, target, measure_bundle(draft, plan, inputs, on_progress, on_warning))
    return load_bundle(target)


def _wrap_and_import(source: Source) -> tuple[WrappedNetwork, Graph]:
    """Returns the fp32 graph, with its fingerprint, and the same graph as the worker reads it."""
    wrapped = wrap(source)
    describe_model(wrapped.model, graph_fingerprint(wrapped.model))
    check_graph(wrapped.model)
    return wrapped, import_graph(wrapped.model)


def describe_bundle(source: Source, wrapped: WrappedNetwork, graph: Graph, plan: ExportPlan, version: str) -> Manifest:
    """Returns the manifest without the digests and the measured figures."""
    return Manifest(
        name=plan.name,
        version=version,
        source=source.description,
        architecture=source.name,
        feature_width=wrapped.feature_width,
        classes=tuple(
            ClassEntry(class_id=class_id, label=label)
            for class_id, label in zip(source.class_ids, source.labels, strict=True)
        ),
        input=input_spec(source.preprocessing),
        layers=tuple(LayerEntry(**asdict(row)) for row in layer_table(graph)),
        projection_obstacle=projection_rule(graph, _logits(graph, wrapped)).obstacle,
        attribution_obstacle=forward_obstacle(graph, None),
        fixed_batch_size=wrapped.fixed_batch_size,
        artefacts={precision: ARTEFACTS[precision] for precision in plan.precisions},
        fingerprint=graph_fingerprint(wrapped.model),
        files={},
    )


def _logits(graph: Graph, wrapped: WrappedNetwork) -> str:
    """Returns the tensor before the softmax. The import cannot find it where an unknown operation hides its shape."""
    made = {name for node in graph.nodes for name in node.outputs}
    return wrapped.logits if wrapped.logits in made else graph.logits


def measure_bundle(
    draft: Bundle, plan: ExportPlan, inputs: MeasurementInputs, on_progress: OnProgress, on_warning: OnWarning
) -> Manifest:
    """Measures and verifies all graphs of a draft, and writes the golden inputs. Returns the manifest with the figures.

    An fp16 graph that differs too much is left out, unless the plan wants it.

    Raises:
        ParityError: a float graph differs from the network by more than its tolerance.
        BundleError: an engine does not reproduce its own golden outputs.
        EngineFailed: ONNX Runtime cannot run a graph.
    """
    found: dict[Precision, Measurement] = {}
    photos = len(inputs.validation.paths) if inputs.validation else 0
    for precision in draft.manifest.artefacts:
        advance = partial(_advance, on_progress, f"accuracy of {precision}", photos)
        try:
            found[precision] = measure(draft, precision, inputs, advance)
        except ParityError as error:
            if precision != "fp16" or plan.fp16:
                raise
            draft = _without_half(draft, error, on_warning)
    write_golden(Golden(inputs.golden_pixels, {name: one.golden for name, one in found.items()}), draft.folder)
    figures = {
        "artefacts": {name: _with_tolerances(draft.manifest.artefacts[name], one) for name, one in found.items()},
        "parity": tuple(entry for one in found.values() for entry in one.parity),
        "accuracy": tuple(one.accuracy for one in found.values() if one.accuracy),
    }
    manifest = draft.manifest.model_copy(update=figures)
    verify_graphs(Bundle(draft.folder, manifest))
    return manifest


def _with_tolerances(artefact: Artefact, measurement: Measurement) -> Artefact:
    """Scales the tolerances by the largest golden probability.

    A thousand classes may share the probability so evenly that none reaches 0.01. A fixed tolerance would then accept
    any output.
    """
    largest = float(measurement.golden.max())
    scaled = {
        name: largest * value
        for name in ("golden_tolerance", "bf16_tolerance")
        if (value := getattr(artefact, name)) is not None
    }
    return artefact.model_copy(update=scaled)


def sample_evenly(photos: tuple[Path, ...], count: int) -> tuple[Path, ...]:
    """Selects at most `count` photos at even distances, so that a sample of a list sorted by class has all classes."""
    if len(photos) <= count:
        return photos
    return tuple(photos[index * len(photos) // count] for index in range(count))


def _parity_check(
    source: Source, wrapped: WrappedNetwork, graph: Graph, plan: ExportPlan, manifest: Manifest
) -> ParityCheck:
    whole = not manifest.attribution_obstacle
    deepest = None if whole or not manifest.layers else manifest.layers[-1].tensor
    return ParityCheck(source, wrapped, graph, plan.tolerance, deepest, whole)


def _write_half(
    model: onnx.ModelProto,
    draft: Bundle,
    plan: ExportPlan,
    inputs: MeasurementInputs,
    on_progress: OnProgress,
    on_warning: OnWarning,
) -> Bundle:
    """Writes the fp16 graph. Returns the draft, without fp16 if that was left out."""
    on_progress("fp16 graph", 0, 1)
    try:
        for reference in inputs.references:
            require_half_range(model, reference, draft.manifest.fixed_batch_size or BATCH)
        half = convert_to_half(model)
        describe_model(half, draft.manifest.fingerprint)
        check_graph(half)
        onnx.save(half, draft.artefact("fp16"))
    except (GraphError, ParityError) as error:
        if plan.fp16:
            raise
        draft = _without_half(draft, error, on_warning)
    on_progress("fp16 graph", 1, 1)
    return draft


def _without_half(draft: Bundle, error: Exception, on_warning: OnWarning) -> Bundle:
    """Removes the fp16 graph and says why. Returns the draft without it."""
    on_warning(f"the fp16 file is left out: {str(error).removesuffix('; no bundle was written')}")
    draft.artefact("fp16").unlink(missing_ok=True)
    others = {name: one for name, one in draft.manifest.artefacts.items() if name != "fp16"}
    return Bundle(draft.folder, draft.manifest.model_copy(update={"artefacts": others}))


def _write_int8(model: onnx.ModelProto, draft: Bundle, calibration: tuple[Path, ...], on_progress: OnProgress) -> None:
    """Writes both INT8 graphs."""
    photos = sample_evenly(calibration, CALIBRATION_PHOTOS)
    size = draft.manifest.fixed_batch_size or BATCH
    batches = _read(photos, draft.manifest.input, "INT8 calibration", on_progress, size)
    destinations = {precision: draft.artefact(precision) for precision in INT8_PRECISIONS}
    quantize_files(model, destinations, batches, draft.manifest.fingerprint)


def _prepare_inputs(check: ParityCheck, plan: ExportPlan, on_progress: OnProgress) -> MeasurementInputs:
    spec = input_spec(check.source.preprocessing)
    available = (*plan.photos, *plan.calibration, *(plan.validation.paths if plan.validation else ()))
    photos = sample_evenly(tuple(dict.fromkeys(available)), PARITY_PHOTOS)
    references = []
    if photos:
        pixels = np.concatenate(list(_read(photos, spec, "photos for parity", on_progress)))
        references.append(check.make_reference("photos", pixels))
    references.append(check.make_reference("noise", noise_images(spec, NOISE_IMAGES)))
    golden_pixels = np.concatenate([reference.pixels[:GOLDEN_INPUTS] for reference in references])
    tolerances: dict[Precision, float] = {"fp32": plan.tolerance, "fp16": FP16_TOLERANCE}
    return MeasurementInputs(references, tolerances, golden_pixels, plan.validation)


def _read(
    photos: tuple[Path, ...], spec: InputSpec, step: str, on_progress: OnProgress, size: int = BATCH
) -> Iterator[NDArray[np.uint8]]:
    for batch in read_batches(photos, spec, size):
        yield batch
        on_progress(step, len(batch), len(photos))


def _advance(on_progress: OnProgress, step: str, total: int, photos: int) -> None:
    on_progress(step, photos, total)
