"""`zfserve project`: the pixels that drove feature maps, as pictures with a table."""

import argparse
import json
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import cast

from rich.bar import Bar
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from zfserve.client import STRONGEST, Client
from zfserve.errors import ZfserveError
from zfserve.requests import UnitRule
from zfserve.results import Box, Position, Projection

from zfserve_cli.connection_arguments import (
    add_connection_arguments,
    add_model_argument,
    exit_status,
    explain,
    open_client,
)
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_cli.projection_files import SavedProjection, save_projection, save_sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, metavar="PHOTO")
    parser.add_argument("--layer", default="conv5", help="a layer that `zfserve info` lists (%(default)s)")
    add_model_argument(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, metavar="N", default=STRONGEST, help="the N strongest maps (%(default)s)")
    which.add_argument("--maps", type=_map_list, metavar="M,M...", help="just these maps, from 0")
    parser.add_argument(
        "--for-class",
        nargs="?",
        const="",
        metavar="CLASS",
        help="the N maps that add most to the score of the class with that id or label; alone: of the most probable",
    )
    parser.add_argument(
        "--unit",
        type=_unit_rule,
        default="strongest",
        metavar="RULE",
        help="which unit of each map: strongest (the default), whole for all of them, or ROW,COLUMN",
    )
    parser.add_argument("--save", type=Path, metavar="DIR", help="write each projection and patch, and a contact sheet")
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON document a line and projection; pictures are left to --save, whose file names it then gives",
    )
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    messages = Console(stderr=True)
    try:
        client = open_client(arguments)
        if arguments.save:
            arguments.save.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        messages.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return UNUSABLE
    try:
        with client:
            saved = _save_each(client, arguments, messages)
        _sum_up(saved, arguments, messages)
    except ZfserveError as error:
        messages.print(f"[red]error:[/] {escape(explain(error, arguments))}", soft_wrap=True)
        return exit_status(error)
    except _NotSaved as error:
        messages.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return FAILED
    return OK


def _save_each(client: Client, arguments: argparse.Namespace, messages: Console) -> list[SavedProjection]:
    """Every projection as it comes, saved where that is wanted, and told as JSON where that is."""
    saved: list[SavedProjection] = []
    with closing(_projections(client, arguments, messages)) as projections:
        for projection in projections:
            with _saving():
                saved.append(save_projection(projection, arguments.layer, arguments.save))
            if arguments.json:
                sys.stdout.write(json.dumps(_document(saved[-1])) + "\n")
    return saved


def _sum_up(saved: list[SavedProjection], arguments: argparse.Namespace, messages: Console) -> None:
    title = f"{arguments.layer} of {arguments.photo.name}"
    if for_class := next((entry.projection.for_class for entry in saved), None):
        title += f", for {for_class.label} ({for_class.probability:.1%})"
    if not arguments.json:
        Console().print(projection_table(saved, title))
    if arguments.save:
        sheet = arguments.save / f"{arguments.layer}-sheet.png"
        with _saving():
            save_sheet([entry.projection for entry in saved], title, sheet)
        messages.print(
            f"{len(saved)} projections with their patches, and all of them on {escape(str(sheet))}", soft_wrap=True
        )


class _NotSaved(Exception):
    """The message says what could not be written, and why."""


@contextmanager
def _saving() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise _NotSaved(f"a picture cannot be written{where}: {error.strerror or error}") from error


def projection_table(saved: list[SavedProjection], title: str) -> Table:
    """A row for each projection, in the order they came, with its unit and the region of the photo it sees; the bar is
    of what it adds to its class, where it was chosen for one, else of its activation."""
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 1), title_style="bold")
    with_files = any(entry.picture for entry in saved)
    for_class = any(entry.projection.for_class for entry in saved)
    numbers = ["map", "row, col", "activation", *(["adds"] if for_class else [])]
    for column in (*numbers, "", "columns × rows", *(["picture"] if with_files else [])):
        # Only the bar gives way where the terminal is narrow.
        justify: JustifyMethod = "right" if column in numbers else "left"
        table.add_column(column, header_style="dim", justify=justify, no_wrap=bool(column))
    weights = [_weight(entry.projection) for entry in saved]
    highest = max(weights, default=0.0) or 1.0
    for entry, weight in zip(saved, weights, strict=True):
        projection = entry.projection
        table.add_row(
            str(projection.map),
            unit_name(projection),
            f"{projection.activation:.2f}",
            *([f"{weight:+.3f}"] if for_class else []),
            Bar(1, 0, max(0.0, weight / highest), width=10, color="blue"),
            box_name(projection.source_box or projection.box),
            *([entry.picture.name] if entry.picture else []),
        )
    return table


def _weight(projection: Projection) -> float:
    return projection.activation if projection.attribution is None else projection.attribution


def unit_name(projection: Projection) -> str:
    return "whole map" if projection.unit is None else f"{projection.unit.row}, {projection.unit.column}"


def box_name(box: Box) -> str:
    return f"{box.left}–{box.right} × {box.top}–{box.bottom}"


def _projections(client: Client, arguments: argparse.Namespace, messages: Console) -> Generator[Projection]:
    total = len(arguments.maps) if arguments.maps else arguments.top
    progress = Progress(
        TextColumn(f"projecting {arguments.layer}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    )
    model, version = arguments.model
    projections = client.project(
        arguments.photo,
        arguments.layer,
        model=model,
        version=version,
        strongest=arguments.top,
        maps=arguments.maps,
        for_class=arguments.for_class,
        unit=arguments.unit,
    )
    with progress, closing(projections):
        yield from progress.track(projections, total=total)


def _document(saved: SavedProjection) -> dict[str, object]:
    document = asdict(saved.projection)
    for picture in ("png", "pixels", "patch_png"):
        del document[picture]
    if saved.picture and saved.patch:
        document |= {"picture": str(saved.picture), "patch": str(saved.patch)}
    return document


def _map_list(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of maps such as 1,5") from None


def _unit_rule(text: str) -> UnitRule:
    match text:
        case "strongest" | "whole":
            return cast(UnitRule, text)
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of strongest, whole and ROW,COLUMN") from None
    return Position(row, column)
