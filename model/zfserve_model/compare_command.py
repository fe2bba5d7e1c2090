"""`zfserve compare` prints one table over runs of `zfserve train`, like table 3 of the paper.

It reads the record in each run's folder, and neither weights nor photos.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zfserve_model.training.run_summary import RunError, RunSummary, list_differences, read_run

NOT_MEASURED = "-"
TOO_LONG_TO_PRINT = {
    "listing": "their training photos",
    "class_ids": "their classes",
    "start_digest": "the weights that they began with",
    "recipe.stages": "their stages",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the --output folder of a `zfserve train`")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 when done, and 2 if a folder is not that of a run."""
    try:
        runs = [read_run(folder) for folder in arguments.runs]
    except RunError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    console = Console()
    if arguments.json:
        console.print(json.dumps(_document(runs), indent=2), soft_wrap=True, highlight=False, markup=False)
        return 0
    console.print(_table(runs))
    console.print("errors of the finished networks, on training and on validation photos")
    for line in _remarks(runs):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


def _document(runs: Sequence[RunSummary]) -> dict[str, Any]:
    return {
        "runs": [
            {
                "run": str(each.run),
                "variant": each.network.description,
                "hidden_width": each.network.hidden_width if each.network.hidden_layers else None,
                "parameters": each.parameters,
                "epochs_done": each.epochs_done,
                "epochs": each.epochs,
                "train_top1_error": each.train_top1_error,
                "val_top1_error": each.val_top1_error,
                "val_top5_error": each.val_top5_error,
                "missing": each.missing,
            }
            for each in runs
        ],
        "differences": list_differences(runs),
    }


def _table(runs: Sequence[RunSummary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("variant")
    for heading in ("hidden\nwidth", "parameters", "train\ntop-1 %", "val\ntop-1 %", "val\ntop-5 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = [each.run.resolve().name for each in runs]
    for name, each in zip(names, runs, strict=True):
        width = str(each.network.hidden_width) if each.network.hidden_layers else NOT_MEASURED
        errors = map(_as_percent, (each.train_top1_error, each.val_top1_error, each.val_top5_error))
        folder = name if names.count(name) == 1 else str(each.run)
        table.add_row(escape(folder), each.network.description, width, f"{each.parameters:,}", *errors)
    return table


def _as_percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{100 * share:.1f}"


def _remarks(runs: Sequence[RunSummary]) -> list[str]:
    """Returns a line for each missing figure, and for each difference that makes the table no fair comparison."""
    lines = [f"{each.run}: {reason}" for each in runs for reason in each.missing]
    for name, values in list_differences(runs).items():
        what = TOO_LONG_TO_PRINT.get(name) or f"{name} is {', '.join(map(str, values))}"
        lines.append(f"the runs differ in more than the network: {what}")
    return lines
