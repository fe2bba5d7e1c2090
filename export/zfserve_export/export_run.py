"""This module runs an export as the command's arguments say, and reports it. `export_command` calls it."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from zfserve_model.checkpoint import CheckpointError
from zfserve_model.graph.errors import GraphError, readable
from zfserve_model.labels import LabelsError
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineFailed
from zfserve_runtime.grpc.shutdown import sigterm_as_exit

from zfserve_export.export_command import DEFAULT_PHOTOS
from zfserve_export.export_summary import find_faults, print_summary
from zfserve_export.exporter import ExportPlan, export_bundle
from zfserve_export.parity import ParityError
from zfserve_export.photos import PhotoError, list_labelled_photos, list_photos
from zfserve_export.source_arguments import source_options
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.opening import open_source
from zfserve_export.sources.source import Source
from zfserve_export.upgrade import upgrade_bundle

FEW_CALIBRATION_PHOTOS = 64

_UNUSABLE = (
    BundleError,
    CheckpointError,
    EngineFailed,
    GraphError,
    LabelsError,
    OSError,
    ParityError,
    PhotoError,
    SourceError,
)


def run_export(arguments: argparse.Namespace, messages: Console) -> int:
    """Exports the source of the arguments and returns the exit status. Prints warnings and errors to `messages`."""
    started = time.monotonic()
    try:
        plan = make_plan(arguments)
        with sigterm_as_exit(), _progress(messages) as on_progress:
            on_progress("network to ONNX", 0, 1)
            source = open_source(arguments.source, source_options(arguments))
            on_progress("network to ONNX", 1, 1)
            plan = complete_plan(plan, source, arguments)
            for warning in (*source.notes, *plan_warnings(plan)):
                _print(messages, "[yellow]warning:[/]", warning)
            on_warning = partial(_print, messages, "[yellow]warning:[/]")
            bundle = export_bundle(source, plan, on_progress, on_warning)
    except _UNUSABLE as error:
        _print(messages, "[red]error:[/]", _sentence(error))
        return 2
    except MemoryError:
        _print(messages, "[red]error:[/]", "there is not enough memory for this network; export it on a larger machine")
        return 2
    except KeyboardInterrupt:
        _print(messages, "interrupted;", "no bundle was written")
        return 130
    print_summary(Console(), bundle, time.monotonic() - started)
    for fault in find_faults(bundle):
        _print(messages, "[bold red]warning:[/]", fault)
    return 0


def run_upgrade(folder: Path, messages: Console) -> int:
    """Upgrades the bundle in `folder` and returns the exit status. Says in one sentence what was done."""
    try:
        with sigterm_as_exit():
            bundle = upgrade_bundle(folder)
    except _UNUSABLE as error:
        _print(messages, "[red]error:[/]", _sentence(error))
        return 2
    except KeyboardInterrupt:
        _print(messages, "interrupted;", "no bundle was written")
        return 130
    manifest = bundle.manifest
    Console().print(
        f"[green]wrote[/] {bundle.folder} with the same graphs ({', '.join(manifest.artefacts)}), golden inputs and "
        f"figures in schema {manifest.schema_version}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def make_plan(arguments: argparse.Namespace) -> ExportPlan:
    """Returns the plan for the arguments. `complete_plan` adds what only the source says.

    Raises:
        PhotoError: a folder of photos cannot be used.
        BundleError: name or version cannot be a folder's name, or INT8 is asked for and there are no photos.
    """
    folder = arguments.photos or (DEFAULT_PHOTOS if DEFAULT_PHOTOS.is_dir() else None)
    photos = list_photos(folder) if folder else ()
    calibration = list_photos(arguments.calibration) if arguments.calibration else ()
    if arguments.int8 is False:
        calibration = ()
    elif arguments.int8 and not calibration:
        calibration = photos
        if not photos:
            raise BundleError("INT8 needs photos to calibrate on; give a folder with --calibration")
    return ExportPlan(
        models=arguments.output,
        name=arguments.name or "model",
        version=arguments.version,
        tolerance=arguments.tolerance,
        fp16=arguments.fp16,
        photos=photos,
        calibration=calibration,
    )


def complete_plan(plan: ExportPlan, source: Source, arguments: argparse.Namespace) -> ExportPlan:
    """Returns the plan with the name of the source, unless the user gave one, and the photos of its classes.

    Raises:
        PhotoError: the folder of validation photos does not fit the classes.
    """
    validation = list_labelled_photos(arguments.validation, source.class_ids) if arguments.validation else None
    return replace(plan, name=arguments.name or source.name, validation=validation)


def plan_warnings(plan: ExportPlan) -> list[str]:
    """Returns one sentence for each thing that would make the bundle better."""
    warnings = []
    if 0 < len(plan.calibration) < FEW_CALIBRATION_PHOTOS:
        warnings.append(
            f"INT8 is calibrated on only {len(plan.calibration)} photos; for better accuracy give some hundred with "
            "--calibration"
        )
    if not (plan.photos or plan.calibration or plan.validation):
        warnings.append("no photos were given: parity is measured on noise only; add photos with --photos")
    return warnings


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'} cannot be used: {error.strerror}; check its name, its rights and the disk"
    return str(error)


def _print(messages: Console, heading: str, sentence: str) -> None:
    messages.print(heading, escape(readable(sentence)), highlight=False, soft_wrap=True)


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
