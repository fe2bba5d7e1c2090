"""`zfserve export` turns weights into a bundle that can be served."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from zfserve_model.checkpoint import Checkpoint, CheckpointError
from zfserve_model.labels import LabelsError
from zfserve_runtime.bundle import Bundle, BundleError
from zfserve_runtime.errors import EngineFailed
from zfserve_runtime.grpc.shutdown import sigterm_as_exit

from zfserve_export.exporter import INT8_PRECISIONS, ExportPlan, export_bundle
from zfserve_export.onnx_graph import GraphError
from zfserve_export.parity import ParityError
from zfserve_export.photos import PhotoError, list_labelled_photos, list_photos
from zfserve_export.weights_arguments import add_weights_arguments, read_weights

DEFAULT_WEIGHTS = Path("weights/zfnet-imagenette.safetensors")
DEFAULT_PHOTOS = Path("samples")
FEW_CALIBRATION_PHOTOS = 64
MOST_TOP1_LOST = 0.01
LEAST_AGREEMENT = 0.95

_UNUSABLE = (BundleError, CheckpointError, EngineFailed, GraphError, LabelsError, ParityError, PhotoError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights", type=Path, nargs="?", default=DEFAULT_WEIGHTS, help=f"trained weights (default: {DEFAULT_WEIGHTS})"
    )
    parser.add_argument("--output", type=Path, default=Path("models"), help="folder of all models (default: models)")
    parser.add_argument("--name", help="name of the model (default: its architecture)")
    parser.add_argument("--version", help="version of the model (default: the next whole number)")
    parser.add_argument(
        "--fp16", action=argparse.BooleanOptionalAction, default=True, help="also write a float16 file for GPUs"
    )
    parser.add_argument(
        "--int8",
        action=argparse.BooleanOptionalAction,
        help="also write INT8 files, one for CPUs and one for GPUs (default: if --calibration is given)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="folder of some hundred photos to calibrate INT8 on"
    )
    parser.add_argument(
        "--validation", type=Path, metavar="DIR", help="folder with <class id>/ or val/<class id>/, to measure accuracy"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help=f"folder of more photos for parity and golden inputs (default: {DEFAULT_PHOTOS}, if it exists)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference between fp32 and PyTorch in a probability (default: 1e-4)",
    )
    add_weights_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    messages = Console(stderr=True)
    started = time.monotonic()
    try:
        checkpoint = _load(arguments)
        plan, warnings = make_plan(arguments, checkpoint)
        for warning in warnings:
            _print(messages, "[yellow]warning:[/]", warning)
        with sigterm_as_exit(), _progress(messages) as on_progress:
            bundle = export_bundle(checkpoint, plan, on_progress)
    except _UNUSABLE as error:
        _print(messages, "[red]error:[/]", str(error))
        return 2
    except KeyboardInterrupt:
        _print(messages, "interrupted;", "no bundle was written")
        return 130
    print_summary(Console(), bundle, time.monotonic() - started)
    for fault in find_faults(bundle):
        _print(messages, "[bold red]warning:[/]", fault)
    return 0


def make_plan(arguments: argparse.Namespace, checkpoint: Checkpoint) -> tuple[ExportPlan, list[str]]:
    """Returns the plan for the arguments, and warnings about what would make the bundle better. Each is one sentence.

    Raises:
        PhotoError: a folder of photos cannot be used.
        BundleError: name or version cannot be a folder's name, or INT8 is asked for and there are no photos.
    """
    warnings = []
    folder = arguments.photos or (DEFAULT_PHOTOS if DEFAULT_PHOTOS.is_dir() else None)
    photos = list_photos(folder) if folder else ()
    calibration = list_photos(arguments.calibration) if arguments.calibration else ()
    if arguments.int8 is False:
        calibration = ()
    elif arguments.int8 and not calibration:
        calibration = photos
        if not photos:
            raise BundleError("INT8 needs photos to calibrate on; give a folder with --calibration")
    if 0 < len(calibration) < FEW_CALIBRATION_PHOTOS:
        warnings.append(
            f"INT8 is calibrated on only {len(calibration)} photos; for better accuracy give some hundred with "
            "--calibration"
        )
    validation = list_labelled_photos(arguments.validation, checkpoint.class_ids) if arguments.validation else None
    if not (photos or calibration or validation):
        warnings.append("no photos were given: parity is measured on noise only; add photos with --photos")
    plan = ExportPlan(
        models=arguments.output,
        name=arguments.name or checkpoint.network.spec.architecture,
        version=arguments.version,
        tolerance=arguments.tolerance,
        fp16=arguments.fp16,
        photos=photos,
        calibration=calibration,
        validation=validation,
    )
    return plan, warnings


def print_summary(console: Console, bundle: Bundle, seconds: float) -> None:
    """Prints one row for each graph of the bundle, with its size, parity and accuracy."""
    manifest = bundle.manifest
    accuracy = {entry.precision: entry for entry in manifest.accuracy}
    table = Table(
        title=f"{manifest.name} {manifest.version}", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    table.add_column("precision", no_wrap=True)
    for heading in ("MB", "top-1", "top-5", "parity on", "off by", "same class"):
        table.add_column(heading, justify="right")
    for precision in manifest.artefacts:
        file, score = bundle.artefact(precision), accuracy.get(precision)
        parity = [entry for entry in manifest.parity if entry.precision == precision]
        table.add_row(
            precision,
            f"{file.stat().st_size / 1e6:.1f}",
            f"{score.top1:.2%}" if score else "-",
            f"{score.top5:.2%}" if score else "-",
            "\n".join(f"{entry.count} {entry.inputs}" for entry in parity),
            "\n".join(f"{entry.max_difference:.1e}" for entry in parity),
            "\n".join(f"{entry.top1_agreement:.1%}" for entry in parity),
        )
    console.print(table)
    console.print(f"fingerprint {manifest.fingerprint[:16]}…, {len(manifest.classes)} classes", highlight=False)
    console.print(f"[green]wrote[/] {bundle.folder} in {seconds:.0f} s", highlight=False, soft_wrap=True)


def find_faults(bundle: Bundle) -> list[str]:
    """Returns one sentence for each INT8 file that differs too much from the network."""
    top1 = {entry.precision: entry.top1 for entry in bundle.manifest.accuracy}
    faults = [
        f"{entry.precision} gives another top class than the network for {1 - entry.top1_agreement:.0%} of "
        f"{entry.count} photos; measure its accuracy with --validation before serving it"
        for entry in bundle.manifest.parity
        if entry.precision in INT8_PRECISIONS and entry.inputs == "photos" and entry.top1_agreement < LEAST_AGREEMENT
        if entry.precision not in top1  # a measured accuracy says more than this agreement
    ]
    faults += [
        f"{precision.upper()} LOSES {(top1['fp32'] - top1[precision]) * 100:.1f} POINTS OF TOP-1 "
        f"({top1['fp32']:.1%} to {top1[precision]:.1%}); serve fp32, or calibrate on more photos that resemble "
        "those you will classify"
        for precision in INT8_PRECISIONS
        if precision in top1 and top1["fp32"] - top1[precision] > MOST_TOP1_LOST
    ]
    return faults


def _load(arguments: argparse.Namespace) -> Checkpoint:
    weights: Path = arguments.weights
    if weights == DEFAULT_WEIGHTS and not weights.is_file():
        raise CheckpointError(
            f"{weights} does not exist; run this in a checkout of zfserve, or name a weights file (`zfserve train` "
            "writes one)"
        )
    return read_weights(weights, arguments)


def _print(messages: Console, heading: str, sentence: str) -> None:
    messages.print(heading, escape(sentence), highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator["_StepBars"]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _StepBars(progress)


class _StepBars:
    """Shows one progress bar for each step. It appears at the step's first report."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, advance: int, total: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(step, total=total)
        self._progress.advance(self._tasks[step], advance)
