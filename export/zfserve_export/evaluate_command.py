"""`zfserve evaluate` measures the accuracy of a bundle, or of a source before its export, on a folder of photos."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from zfserve_engines.catalogue import ENGINE_KINDS
from zfserve_engines.contract import EngineName, EngineUnavailable
from zfserve_engines.golden import verify_engine
from zfserve_engines.opening import EngineOptions
from zfserve_model.checkpoint import CheckpointError
from zfserve_model.graph.errors import GraphError
from zfserve_model.labels import LabelsError
from zfserve_runtime.bundle import BundleError, InputSpec, Precision, load_bundle
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.errors import EngineFailed

from zfserve_export.evaluation import Classifier, Score, evaluate
from zfserve_export.parity import softmax, source_scores
from zfserve_export.photos import PhotoError, input_spec, list_labelled_photos
from zfserve_export.source_arguments import add_source_arguments, require_source_files, source_options
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.opening import open_source
from zfserve_export.sources.source import Source
from zfserve_export.sources.source_path import CHOICES, EFFICIENTNET_LITE0

WORST_CONFUSIONS = 5

_UNUSABLE = (
    BundleError,
    CheckpointError,
    EngineFailed,
    EngineUnavailable,
    GraphError,
    LabelsError,
    PhotoError,
    SourceError,
)


@dataclass(frozen=True)
class EvaluatedModel:
    """Holds a bundle or a source to evaluate: a classifier, its input and its classes."""

    name: str
    classify: Classifier
    spec: InputSpec
    class_ids: tuple[str, ...]
    labels: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "zfserve evaluate TARGET --data DIR [OPTIONS]"
    parser.add_argument("target", metavar="TARGET", help=f"the folder of a bundle or a model, or a source: {CHOICES}")
    parser.add_argument("--data", type=Path, required=True, help="folder with <class id>/ or val/<class id>/")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="precision of the bundle's graph (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        default="onnx-cpu",
        help="engine that runs a bundle (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="photos in a batch (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=available_cpus(),
        help="threads of the engine that runs a bundle (default: all available CPUs)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument(
        "--confusion", type=Path, metavar="FILE.png", help="also draw the confusion matrix into this file"
    )
    add_source_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    console = Console()
    if arguments.batch_size < 1 or arguments.threads < 1:
        return _refuse("--batch-size must be at least 1, and --threads too")
    try:
        model = open_model(arguments)
        photos = list_labelled_photos(arguments.data, model.class_ids)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("evaluating", total=len(photos.paths))
            score = evaluate(
                model.classify,
                model.spec,
                photos,
                arguments.batch_size,
                lambda count: progress.advance(task, count),
            )
    except _UNUSABLE as error:
        return _refuse(str(error))
    print_score(console, model, score)
    try:
        _write_results(arguments, model, score)
    except (OSError, ValueError) as error:  # matplotlib raises ValueError for an unknown suffix
        return _refuse(f"the result cannot be written: {error}")
    return 0


def _write_results(arguments: argparse.Namespace, model: EvaluatedModel, score: Score) -> None:
    if arguments.json:
        _write(arguments.json, lambda file: file.write_text(json.dumps(describe_score(model, score), indent=2) + "\n"))
    if arguments.confusion:
        from zfserve_export.confusion_picture import draw_confusion  # matplotlib takes a second to import

        title = f"{model.name}: top-1 {score.top1:.1%} of {score.count:,} photos"
        _write(arguments.confusion, lambda file: draw_confusion(score, model.labels, title, file))


def open_model(arguments: argparse.Namespace) -> EvaluatedModel:
    """Opens a bundle on the engine of `--engine`, or a source as it is before its export.

    Both get photos that are decoded as in the server.

    Raises:
        BundleError, CheckpointError, GraphError, LabelsError, SourceError: the target cannot be used.
        EngineFailed: the engine does not start.
        EngineUnavailable: the engine is not available here.
    """
    target = Path(arguments.target)
    # A name without a suffix is a bundle's folder, also where that folder does not exist.
    if not target.is_dir() and (target.suffix or ":" in arguments.target or arguments.target == EFFICIENTNET_LITE0):
        return _open_source(arguments)
    bundle, precision = load_bundle(target), arguments.precision
    options = EngineOptions(bundle, arguments.batch_size, arguments.threads)
    (engine,) = ENGINE_KINDS[arguments.engine].open(options, precision, lambda step: None)
    verify_engine(engine, bundle)
    manifest = bundle.manifest
    return EvaluatedModel(
        f"{manifest.name} {manifest.version}, {precision} by {arguments.engine}",
        lambda pixels: engine.run(pixels).probabilities,
        manifest.input,
        tuple(entry.class_id for entry in manifest.classes),
        tuple(entry.label for entry in manifest.classes),
    )


def _open_source(arguments: argparse.Namespace) -> EvaluatedModel:
    require_source_files(arguments)
    source = open_source(arguments.target, source_options(arguments))
    return EvaluatedModel(
        f"{source.description}, {'ONNX' if source.module is None else 'PyTorch'} fp32",
        lambda pixels: _probabilities(source, pixels),
        input_spec(source.preprocessing),
        source.class_ids,
        source.labels,
    )


def _probabilities(source: Source, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    scores = source_scores(source, pixels)
    return scores if source.softmax else softmax(scores)


def print_score(console: Console, model: EvaluatedModel, score: Score) -> None:
    """Prints a table of classes, the accuracy over all photos, and the most frequent confusions."""
    table = Table(
        title=model.name, title_justify="left", title_style="bold", box=None, padding=(0, 1), header_style="dim"
    )
    table.add_column("class")
    table.add_column("id", style="dim")
    table.add_column("photos", justify="right")
    table.add_column("top-1", justify="right")
    table.add_column("")
    rows = zip(model.labels, model.class_ids, score.class_counts(), score.class_accuracy(), strict=True)
    for label, class_id, count, accuracy in rows:
        if count:
            table.add_row(escape(label), escape(class_id), f"{count:,}", f"{accuracy:.1%}", _bar(accuracy))
    console.print(table)
    console.print(f"top-1 [bold]{score.top1:.2%}[/]   top-5 [bold]{score.top5:.2%}[/]   of {score.count:,} photos")
    confusions = score.worst_confusions(WORST_CONFUSIONS)
    if confusions:
        console.print("most often confused:")
    for confusion in confusions:
        true, predicted = model.labels[confusion.true], model.labels[confusion.predicted]
        console.print(f"  {confusion.count:4d}  {true} taken for {predicted}", highlight=False, markup=False)


def describe_score(model: EvaluatedModel, score: Score) -> dict[str, object]:
    """Returns all figures, for JSON. Accuracies are in [0, 1]. A class without photos has a top-1 of null."""
    counts, accuracy = score.class_counts().tolist(), score.class_accuracy().tolist()
    return {
        "model": model.name,
        "count": score.count,
        "top1": score.top1,
        "top5": score.top5,
        "classes": [
            {"class_id": class_id, "label": label, "count": count, "top1": share if count else None}
            for class_id, label, count, share in zip(model.class_ids, model.labels, counts, accuracy, strict=True)
        ],
        "confusion": score.confusion.tolist(),
    }


def _refuse(message: str) -> int:
    Console(stderr=True).print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return 2


def _bar(share: float, width: int = 20) -> str:
    return f"[green]{'━' * round(share * width)}[/]"


def _write(file: Path, write: Callable[[Path], object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file)
