"""`zfserve info` lists the models that a service serves, and describes one of them."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from zfserve.client import Client
from zfserve.model_description import InputSpec, ModelDescription, ModelStatus

from zfserve_cli.connection_arguments import add_connection_arguments, add_model_argument
from zfserve_cli.exit_statuses import OK
from zfserve_cli.service_call import call_service


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
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
        console = Console()
        if len(models) > 1 or any(status.reason for status in models):
            console.print(_models(models))
            console.print()
        for part in _parts(client.describe(model=model, version=version)):
            console.print(part)
        return OK

    return call_service(arguments, describe)


def _models(models: Sequence[ModelStatus]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in ("model", "version", "state", "weights"):
        table.add_column(column)
    table.add_column("reason", overflow="fold")
    for status in models:
        name = f"[bold]{escape(status.name)}[/]" if status.is_default else escape(status.name)
        colour = {"ready": "green", "failed": "red"}.get(status.state, "yellow")
        state = f"[{colour}]{status.state}[/]" + (", the default" if status.is_default else "")
        table.add_row(name, escape(status.version), state, status.fingerprint[:12], escape(status.reason))
    return table


def _parts(description: ModelDescription) -> Iterator[RenderableType]:
    yield _overview(description)
    if description.engine.not_taken:
        yield ""
        yield _engines_not_taken(description)
    yield ""
    yield _layers(description)
    if description.accuracy:
        yield ""
        yield _accuracy(description)
    if description.parity:
        yield ""
        yield _parity(description)


def _overview(description: ModelDescription) -> Table:
    model, engine = description.model, description.engine
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("model", f"[bold]{escape(model.name)}[/] {escape(model.version)} ({description.architecture})")
    table.add_row("weights", model.fingerprint)
    table.add_row("input", _input(description.input))
    table.add_row(
        "engine",
        f"[bold]{escape(engine.name)}[/] on {escape(engine.device)} ({engine.runtime}, {engine.provider}), "
        f"{engine.precision}, batches up to {engine.max_batch_size}, {_count(engine.threads, 'thread')}, "
        f"{_count(engine.instances, 'instance')}; ready after {engine.startup_seconds:.1f} s",
    )
    table.add_row("projections", "available" if description.projection_available else "[yellow]not available now[/]")
    table.add_row("features", f"{description.feature_width} values")
    labels = [entry.label for entry in description.classes]
    shown = ", ".join(labels[:12]) + (f" and {len(labels) - 12} more" if len(labels) > 12 else "")
    table.add_row(f"{len(labels)} classes", escape(shown))
    return table


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
    return f"{spec.width} × {spec.height} RGB, {resize}"


def _layers(description: ModelDescription) -> Table:
    table = _figures("layer", "kind", "maps", "size", "sees", "stride", "offset")
    for layer in description.layers:
        table.add_row(
            layer.name,
            layer.kind,
            str(layer.channels),
            f"{layer.width} × {layer.height}",
            f"{layer.receptive_field} px",
            f"{layer.stride} px",
            str(layer.offset),
            style="" if layer.kind == "conv" else "dim",
        )
    return table


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
        table.add_column(column, justify="left" if column == "kind" else "right")
    return table
