"""`zfserve classify` prints the most probable classes of photos, as a table or as JSON."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from zfserve.client import Client
from zfserve.errors import ZfserveError
from zfserve.results import Classification, ClassScore
from zfserve_photos.files import find_photos

from zfserve_cli.connection_arguments import add_connection_arguments, add_model_argument
from zfserve_cli.exit_statuses import UNUSABLE
from zfserve_cli.photo_outcomes import error_document, print_photo_errors, summary_status, with_progress
from zfserve_cli.service_call import call_service, print_error

Outcome = tuple[Path, Classification | ZfserveError]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="files, folders or quoted patterns such as '**/*.jpg'"
    )
    parser.add_argument(
        "--top", type=int, metavar="K", help="number of classes for each photo (default: 5, or all if there are fewer)"
    )
    add_model_argument(parser)
    parser.add_argument(
        "--features", action="store_true", help="with --json: add the activations of the last hidden layer"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document for each photo, each on its own line (JSON Lines); "
        'a photo that failed has "error" instead of "classes"',
    )
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        photos = find_photos(arguments.photos)
    except OSError as error:
        print_error(str(error))
        return UNUSABLE
    return call_service(arguments, lambda client: _classify(client, photos, arguments))


def _classify(client: Client, photos: list[Path], arguments: argparse.Namespace) -> int:
    model, version = arguments.model
    answers = client.classify_many(
        photos, model=model, version=version, top_k=arguments.top, features=arguments.features
    )
    outcomes = with_progress(zip(photos, answers, strict=True), len(photos), "classifying")
    errors = _write_json(outcomes) if arguments.json else _print_tables(list(outcomes), arguments)
    return summary_status(errors, len(photos))


def score_table(classification: Classification, title: str) -> Table:
    """Returns a table with the classes of one photo and a bar for each probability, most probable first."""
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 1), title_style="bold")
    for column in ("class", "", "probability"):
        table.add_column(column, header_style="dim", justify="right" if column == "probability" else "left")
    for rank, score in enumerate(classification.classes):
        style = "bold" if rank == 0 else ""
        table.add_row(Text(score.label, style), _bar(score, rank), Text(f"{score.probability:.1%}", style))
    return table


def timings_line(classification: Classification) -> str:
    """Returns a line with the model that answered and the time of each step."""
    model, timings = classification.model, classification.timings
    return (
        f"{model.name} {model.version} · decode {timings.decode_ms:.1f} ms, queue {timings.queue_ms:.1f} ms, "
        f"inference {timings.inference_ms:.1f} ms"
    )


def _bar(score: ClassScore, rank: int) -> Bar:
    return Bar(1, 0, score.probability, width=30, color="green" if rank == 0 else "blue")


def _print_tables(outcomes: list[Outcome], arguments: argparse.Namespace) -> list[ZfserveError]:
    """Prints all classes of a single photo, or one row for each of several photos. Returns the errors."""
    answers = [(photo, answer) for photo, answer in outcomes if isinstance(answer, Classification)]
    console = Console()
    if len(outcomes) == 1 and answers:
        photo, answer = answers[0]
        console.print(score_table(answer, str(photo)))
        console.print(f" {timings_line(answer)}", style="dim", highlight=False)
    elif answers:
        console.print(_overview(answers))
    return print_photo_errors(outcomes, arguments)


def _overview(answers: list[tuple[Path, Classification]]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for column in ("photo", "class", "", "runner-up", ""):
        table.add_column(column, header_style="dim", overflow="fold")  # a shortened name would not identify the photo
    for photo, answer in answers:
        best, *others = answer.classes
        row = [Text(str(photo)), Text(best.label, "bold"), Text(f"{best.probability:.1%}", "bold")]
        if others:
            row += [Text(others[0].label, "dim"), Text(f"{others[0].probability:.1%}", "dim")]
        table.add_row(*row)
    return table


def _write_json(outcomes: Iterator[Outcome]) -> list[ZfserveError]:
    """Prints one JSON document for each photo. Returns the errors."""
    errors = []
    for photo, answer in outcomes:
        document: dict[str, object] = {"file": str(photo)}
        if isinstance(answer, ZfserveError):
            errors.append(answer)
            document["error"] = error_document(answer)
        else:
            document |= asdict(answer) | {"image_reference": answer.image_reference.value}
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    return errors
