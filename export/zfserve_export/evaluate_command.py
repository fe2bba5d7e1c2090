"""`zfserve evaluate` measures the accuracy of a bundle or a weights file on a folder of photos."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from zfserve_engines.catalogue import ENGINE_KINDS
from zfserve_engines.contract import EngineName, EngineUnavailable
from zfserve_engines.golden import verify_engine
from zfserve_engines.opening import EngineOptions
from zfserve_model.checkpoint import CheckpointError
from zfserve_model.labels import LabelsError
from zfserve_model.weights_import import SUFFIXES as WEIGHTS_SUFFIXES
from zfserve_runtime.bundle import BundleError, InputSpec, Precision, load_bundle
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.errors import EngineFailed

from zfserve_export.evaluation import Classifier, Score, evaluate
from zfserve_export.parity import module_scores, softmax
from zfserve_export.photos import PhotoError, input_spec, list_labelled_photos
from zfserve_export.weights_arguments import add_weights_arguments, read_weights

WORST_CONFUSIONS = 5


@dataclass(frozen=True)
class EvaluatedModel:
    """Holds a bundle or a weights file to evaluate: a classifier, its input and its classes."""

    name: str
    classify: Classifier
    spec: InputSpec
    class_ids: tuple[str, ...]
    labels: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, help="a bundle folder, or weights (.safetensors, .pt, .pth)")
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
    add_weights_arguments(parser)


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
    except (BundleError, CheckpointError, EngineFailed, EngineUnavailable, LabelsError, PhotoError) as error:
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
    """Opens a bundle on the engine of `--engine`, or a weights file in PyTorch.

    Both get photos that are decoded as in the server.

    Raises:
        BundleError, CheckpointError, LabelsError: the target cannot be used.
        EngineFailed: the engine does not start.
        EngineUnavailable: the engine is not available here.
    """
    target: Path = arguments.target
    if target.suffix in WEIGHTS_SUFFIXES:
        checkpoint = read_weights(target, arguments)
        return EvaluatedModel(
            f"{target.name}, PyTorch fp32",
            lambda pixels: softmax(module_scores(checkpoint.network, pixels, checkpoint.preprocessing)),
            input_spec(checkpoint.preprocessing),
            checkpoint.class_ids,
            checkpoint.labels,
        )
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
