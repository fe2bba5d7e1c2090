"""`zfserve project` shows which pixels of a photo drove the feature maps of a layer."""

import argparse
import json
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from zfserve.client import Client
from zfserve.requests import LAST, STRONGEST, UnitRule
from zfserve.results import Position, Projection

from zfserve_cli.connection_arguments import add_connection_arguments, add_model_argument
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_cli.picture_files import NotSaved, file_name_part
from zfserve_cli.projection_files import SavedProjection, save_projection, save_sheet
from zfserve_cli.projection_table import projection_table, rule_note
from zfserve_cli.service_call import call_service, print_error
from zfserve_cli.whole_table import print_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, metavar="PHOTO", help="an image file")
    add_layer_argument(parser)
    add_model_argument(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--top",
        type=int,
        metavar="N",
        default=STRONGEST,
        help="number of strongest maps to show (default: %(default)s)",
    )
    which.add_argument("--maps", type=_map_list, metavar="M,M...", help="the maps to show, each counted from 0")
    parser.add_argument(
        "--for-class",
        nargs="?",
        const="",
        metavar="CLASS",
        help="show the N maps that add most to the score of a class, given by its id or label; "
        "without CLASS, of the most probable class",
    )
    parser.add_argument(
        "--unit",
        type=_unit_rule,
        default="strongest",
        metavar="RULE",
        help="unit of each map to show: strongest, whole (all units together) or ROW,COLUMN (default: strongest)",
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write each projection, its part of the photo, and a contact sheet"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document for each projection, each on its own line; it has the pictures' file names "
        "if --save is given, and never the pictures",
    )
    add_connection_arguments(parser)


def add_layer_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer",
        default=LAST,
        help="a layer or a stage that `zfserve info` lists, or last, the last stage (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    return call_service(arguments, lambda client: _project(client, arguments))


def _project(client: Client, arguments: argparse.Namespace) -> int:
    try:
        if arguments.save:
            arguments.save.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print_error(str(error))
        return UNUSABLE
    try:
        _print_summary(_save_each(client, arguments), arguments)
    except NotSaved as error:
        print_error(str(error))
        return FAILED
    return OK


def _save_each(client: Client, arguments: argparse.Namespace) -> list[SavedProjection]:
    """Saves each projection as it arrives if --save is given, and prints it if --json is given."""
    saved: list[SavedProjection] = []
    with closing(_projections(client, arguments)) as projections:
        for projection in projections:
            saved.append(save_projection(projection, arguments.save))
            if arguments.json:
                sys.stdout.write(json.dumps(projection_document(saved[-1])) + "\n")
    return saved


def _print_summary(saved: list[SavedProjection], arguments: argparse.Namespace) -> None:
    layer = next((entry.projection.layer for entry in saved), arguments.layer)
    title = f"{layer} of {arguments.photo.name}"
    if for_class := next((entry.projection.for_class for entry in saved), None):
        title += f", for {for_class.label} ({for_class.probability:.1%})"
    if not arguments.json:
        print_whole(projection_table(saved, title))
        if note := rule_note([entry.projection for entry in saved]):
            Console().print(f" {escape(note)}", style="dim", highlight=False, soft_wrap=True)
    if arguments.save:
        sheet = arguments.save / f"{file_name_part(layer)}-sheet.png"
        save_sheet([entry.projection for entry in saved], title, sheet)
        Console(stderr=True).print(
            f"saved {len(saved)} projections with their patches; {escape(str(sheet))} shows all of them", soft_wrap=True
        )


def _projections(client: Client, arguments: argparse.Namespace) -> Generator[Projection]:
    """Yields the projections, and shows a progress bar on a terminal."""
    messages = Console(stderr=True)
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


def projection_document(saved: SavedProjection) -> dict[str, object]:
    """Returns the JSON document of a projection. It has the names of the picture files, and never the pictures."""
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of maps such as 1,5") from None


def _unit_rule(text: str) -> UnitRule:
    match text:
        case "strongest" | "whole":
            return cast(UnitRule, text)
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not strongest, whole or ROW,COLUMN") from None
    return Position(row, column)
