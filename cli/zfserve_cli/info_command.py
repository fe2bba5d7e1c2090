"""`zfserve info` lists the models that a service serves, and describes one of them."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from zfserve.client import Client
from zfserve.model_description import InputSpec, ModelDescription, ModelStatus

from zfserve_cli.connection_arguments import add_connection_arguments, add_model_argument
from zfserve_cli.exit_statuses import OK
from zfserve_cli.layer_table import layer_table, named_layer, stage_table
from zfserve_cli.service_call import call_service
from zfserve_cli.whole_table import print_whole

FEW_LAYERS = 30
"""A network with more layers is listed by stage. zfnet has 13."""

FEW_CLASSES = 12
"""The overview prints at most this many classes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--layers",
        action="store_true",
        help="list every layer; otherwise a network of many layers is listed by stage",
    )
    parser.add_argument("--json", action="store_true", help="print the whole description as one JSON document")
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    def describe(client: Client) -> int:
        model, version = arguments.model
        models = client.list_models()
        if arguments.json:
            document = asdict(client.describe(model=model, version=version)) | {"models": [*map(asdict, models)]}
            sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
            return OK
        if len(models) > 1 or any(status.reason for status in models):
            print_whole(_models(models))
            sys.stdout.write("\n")
        _print_description(client.describe(model=model, version=version), arguments.layers)
        return OK

    return call_service(arguments, describe)


def _models(models: Sequence[ModelStatus]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in ("model", "version", "state", "weights"):
        table.add_column(column, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for status in models:
        name = f"[bold]{escape(status.name)}[/]" if status.is_default else escape(status.name)
        colour = {"ready": "green", "failed": "red"}.get(status.state, "yellow")
        state = f"[{colour}]{status.state}[/]" + (", the default" if status.is_default else "")
        table.add_row(name, escape(status.version), state, status.fingerprint[:12], escape(status.reason))
    return table


def _print_description(description: ModelDescription, all_layers: bool) -> None:
    """Prints the overview of a model, its layers, and what was measured at export.

    Args:
        all_layers: print a row for each layer, however many there are. Otherwise a long network gets one for each
            stage.
    """
    console = Console()
    console.print(_overview(description))
    layers = description.layers
    if description.engine.not_taken:
        console.print("", _engines_not_taken(description), sep="\n")
    if layers:
        console.print()
        by_stage = len(layers) > FEW_LAYERS and any(layer.stage for layer in layers) and not all_layers
        print_whole(stage_table(layers) if by_stage else layer_table(layers))
        note = f"`last` stands for {named_layer([layer for layer in layers if layer.stage == layers[-1].stage]).name}"
        if by_stage:
            note = f"{len(layers)} layers, listed by --layers; {note}"
        console.print(f" {escape(note)}", style="dim", highlight=False, soft_wrap=True)
    for table in (_accuracy(description), _parity(description)):
        if table.row_count:
            console.print("", table, sep="\n")


def _overview(description: ModelDescription) -> Table:
    model, engine = description.model, description.engine
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # a shortened fingerprint or name would identify nothing
    table.add_row(
        "model", f"[bold]{escape(model.name)}[/] {escape(model.version)} ({escape(description.architecture)})"
    )
    if description.source:
        table.add_row("source", escape(description.source))
    table.add_row("weights", model.fingerprint)
    table.add_row("input", _input(description.input))
    if description.fixed_batch_size:
        table.add_row("batch", _fixed_batch(description.fixed_batch_size))
    table.add_row(
        "engine",
        f"[bold]{escape(engine.name)}[/] on {escape(engine.device)} ({engine.runtime}, {engine.provider}), "
        f"{engine.precision}, batches up to {engine.max_batch_size}, {_count(engine.threads, 'thread')}, "
        f"{_count(engine.instances, 'instance')}; ready after {engine.startup_seconds:.1f} s",
    )
    table.add_row("projections", _projections(description))
    width = description.feature_width
    table.add_row("features", f"{_count(width, 'value')}" if width else "none")
    labels = [entry.label for entry in description.classes]
    shown = ", ".join(labels[:FEW_CLASSES])
    if len(labels) > FEW_CLASSES:
        shown += f" and {len(labels) - FEW_CLASSES:,} more (--json lists all)"
    table.add_row("classes", escape(f"{len(labels):,}: {shown}"))
    return table


def _fixed_batch(size: int) -> str:
    if size == 1:
        return "served one image at a time: the source has a fixed batch size of 1"
    return f"served in batches of {size}: the source has a fixed batch size"


def _projections(description: ModelDescription) -> str:
    """Says if projections can be computed, and by which rule."""
    if description.projection_obstacle:
        some = "available for the layers below; " if description.layers else ""
        return f"{some}[yellow]{escape(description.projection_obstacle)}[/]"
    if not description.projection_available:
        return "[yellow]not available now[/]"
    extended = [layer for layer in description.layers if layer.rule == "extended"]
    if not extended:
        return "available"
    if len(extended) == len(description.layers):
        return "available, by the extended rule: some activations are no ReLUs"
    return f"available, by the extended rule from {escape(extended[0].name)} upwards: some activations are no ReLUs"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _engines_not_taken(description: ModelDescription) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("engine not taken")
    table.add_column("reason", overflow="fold")
    for entry in description.engine.not_taken:
        table.add_row(entry.name, escape(entry.reason))
    return table


def _input(spec: InputSpec) -> str:
    resize = {
        "squash": "both sides are scaled to it",
        "crop": f"the shorter side is scaled to {spec.shorter_side}, then the centre is cut out",
    }.get(spec.resize, spec.resize)
    return f"{spec.width} × {spec.height} RGB, {spec.interpolation}: {resize}"


def _accuracy(description: ModelDescription) -> Table:
    table = _figures("accuracy", "photos", "top-1", "top-5")
    for figure in description.accuracy:
        table.add_row(figure.precision, f"{figure.count:,}", f"{figure.top1:.2%}", f"{figure.top5:.2%}")
    return table


def _parity(description: ModelDescription) -> Table:
    table = _figures("parity with PyTorch", "inputs", "largest difference", "same class")
    for figure in description.parity:
        table.add_row(
            figure.precision,
            f"{figure.count:,} {figure.inputs}",
            f"{figure.max_difference:.2e}",
            f"{figure.top1_agreement:.2%}",
        )
    return table


def _figures(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
