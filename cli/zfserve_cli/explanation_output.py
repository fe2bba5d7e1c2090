"""Prints explanations: as tables for people, or as JSON."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from zfserve.errors import ZfserveError
from zfserve.explanation import Explanation
from zfserve.results import Projection

from zfserve_cli.explanation_text import METHOD_NAMES, maps_text, probability_text, score_text
from zfserve_cli.photo_outcomes import error_document, print_photo_errors
from zfserve_cli.project_command import projection_document
from zfserve_cli.projection_files import SavedProjection
from zfserve_cli.projection_table import projection_table
from zfserve_cli.whole_table import print_whole


@dataclass(frozen=True)
class Explained:
    """Holds what the service said of one photo.

    Attributes:
        explanation: the heatmap and its figures.
        maps: the projections of the maps that add most to the class. There may be none.
        note: a line that says why there are no maps, or that they do not follow the paper. "" if there is nothing to
            say.
        picture: the file of the picture. None if none was written.
        replaced: True if the picture took the place of a file of the same name.
    """

    explanation: Explanation
    maps: tuple[Projection, ...]
    note: str
    picture: Path | None
    replaced: bool


Outcome = tuple[Path, Explained | ZfserveError]


def print_explanations(outcomes: list[Outcome], arguments: argparse.Namespace) -> None:
    """Prints all figures of a single photo, or one row for each of several photos. Then it prints the errors."""
    explained = [(photo, answer) for photo, answer in outcomes if isinstance(answer, Explained)]
    if len(outcomes) == 1 and explained:
        _print_one(*explained[0])
    elif explained:
        print_whole(_overview(explained))
    if line := _saved_line([answer for _, answer in explained]):
        Console(stderr=True).print(escape(line), soft_wrap=True, highlight=False)
    print_photo_errors(outcomes, arguments)


def _saved_line(explained: list[Explained]) -> str:
    """Returns a line that says where the pictures are, and if they replaced older ones. "" if there are none."""
    pictures = [answer.picture for answer in explained if answer.picture is not None]
    replaced = sum(answer.replaced for answer in explained)
    if not pictures:
        return ""
    if len(pictures) == 1:
        return f"{'replaced' if replaced else 'saved'} {pictures[0]}"
    line = f"saved {len(pictures)} pictures in {pictures[0].parent.resolve()}"
    return f"{line}; {replaced} of them replaced older ones" if replaced else line


def _print_one(photo: Path, answer: Explained) -> None:
    explanation = answer.explanation
    table = Table(title=escape(str(photo)), title_justify="left", box=None, padding=(0, 1), title_style="bold")
    table.show_header = False
    table.add_column(style="dim")
    table.add_column()
    table.add_row("class", Text(f"{explanation.for_class.label}, {probability_text(explanation)}", "bold"))
    table.add_row("layer", Text(explanation.layer))
    table.add_row("method", METHOD_NAMES.get(explanation.method, explanation.method))
    table.add_row("score", score_text(explanation))
    print_whole(table)
    console = Console()
    if answer.maps:
        console.print()
        saved = [SavedProjection(each, None, None) for each in answer.maps]
        print_whole(projection_table(saved, maps_text(explanation, answer.maps)))
    if answer.note:
        console.print(f" {escape(answer.note)}", style="dim", highlight=False, soft_wrap=True)


def _overview(explained: list[tuple[Path, Explained]]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in ("photo", "class", "probability", "layer", "picture"):
        table.add_column(column, no_wrap=True)
    for photo, answer in explained:
        explanation = answer.explanation
        label = Text(explanation.for_class.label, "bold")
        picture = Text(answer.picture.name if answer.picture else "")
        table.add_row(Text(str(photo)), label, probability_text(explanation), Text(explanation.layer), picture)
    return table


def write_json(photo: Path, answer: Explained | ZfserveError) -> None:
    """Prints the JSON document of one photo."""
    document: dict[str, object] = {"file": str(photo)}
    document |= {"error": error_document(answer)} if isinstance(answer, ZfserveError) else _document(answer)
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")


def _document(answer: Explained) -> dict[str, object]:
    document = asdict(answer.explanation) | {"heatmap": answer.explanation.heatmap.rows()}
    del document["overlay_png"]
    document["maps"] = [projection_document(SavedProjection(each, None, None)) for each in answer.maps]
    if answer.note:
        document["note"] = answer.note
    if answer.picture is not None:
        document["picture"] = str(answer.picture)
    return document
