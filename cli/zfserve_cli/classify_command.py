"""`zfserve classify`: what photos show, as a table or as JSON."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from zfserve.errors import ZfserveError
from zfserve.results import Classification, ClassScore
from zfserve_photos.files import find_photos

from zfserve_cli.connection_arguments import (
    add_connection_arguments,
    add_model_argument,
    exit_status,
    explain,
    open_client,
)
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE

Outcome = tuple[Path, Classification | ZfserveError]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files, folders or quoted globs ('**/*.jpg')")
    parser.add_argument("--top", type=int, metavar="K", help="classes per photo (5, or as many as there are)")
    add_model_argument(parser)
    parser.add_argument("--features", action="store_true", help="with --json: the last hidden layer as well")
    parser.add_argument(
        "--json",
        action="store_true",
        help="the whole answer as JSON on standard output, one document a line and photo (JSON Lines); "
        'a photo that failed has "error" in place of "classes"',
    )
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    messages = Console(stderr=True)
    try:
        photos = find_photos(arguments.photos)
        client = open_client(arguments)
    except (OSError, ValueError) as error:
        messages.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return UNUSABLE
    with client:
        model, version = arguments.model
        answers = client.classify_many(
            photos, model=model, version=version, top_k=arguments.top, features=arguments.features
        )
        outcomes = _with_progress(zip(photos, answers, strict=True), len(photos), messages)
        errors = _write_json(outcomes) if arguments.json else _print_tables(list(outcomes), arguments, messages)
    if not errors:
        return OK
    return exit_status(errors[0]) if len(errors) == len(photos) else FAILED


def score_table(classification: Classification, title: str) -> Table:
    """The classes of one photo with bars, most probable first."""
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 1), title_style="bold")
    for column in ("class", "", "probability"):
        table.add_column(column, header_style="dim", justify="right" if column == "probability" else "left")
    for rank, score in enumerate(classification.classes):
        style = "bold" if rank == 0 else ""
        table.add_row(Text(score.label, style), _bar(score, rank), Text(f"{score.probability:.1%}", style))
    return table


def timings_line(classification: Classification) -> str:
    """Who answered, and where the time went."""
    model, timings = classification.model, classification.timings
    return (
        f"{model.name} {model.version} · decode {timings.decode_ms:.1f} ms, queue {timings.queue_ms:.1f} ms, "
        f"inference {timings.inference_ms:.1f} ms"
    )


def _bar(score: ClassScore, rank: int) -> Bar:
    return Bar(1, 0, score.probability, width=30, color="green" if rank == 0 else "blue")


def _print_tables(outcomes: list[Outcome], arguments: argparse.Namespace, messages: Console) -> list[ZfserveError]:
    """One photo: its classes. Several: a row for each, with its best class and the runner-up."""
    errors = [(photo, answer) for photo, answer in outcomes if isinstance(answer, ZfserveError)]
    answers = [(photo, answer) for photo, answer in outcomes if isinstance(answer, Classification)]
    console = Console()
    if len(outcomes) == 1 and answers:
        photo, answer = answers[0]
        console.print(score_table(answer, str(photo)))
        console.print(f" {timings_line(answer)}", style="dim", highlight=False)
    elif answers:
        console.print(_overview(answers))
    if len({explain(error, arguments) for _, error in errors}) == 1 and len(errors) > 1:
        messages.print(
            f"[red]error:[/] {len(errors)} photos: {escape(explain(errors[0][1], arguments))}", soft_wrap=True
        )
    else:
        for photo, error in errors:
            messages.print(f"[red]error:[/] {escape(f'{photo}: {explain(error, arguments)}')}", soft_wrap=True)
    return [error for _, error in errors]


def _overview(answers: list[tuple[Path, Classification]]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for column in ("photo", "class", "", "runner-up", ""):
        table.add_column(column, header_style="dim", overflow="fold")  # a name cut short names no photo
    for photo, answer in answers:
        best, *others = answer.classes
        row = [Text(str(photo)), Text(best.label, "bold"), Text(f"{best.probability:.1%}", "bold")]
        if others:
            row += [Text(others[0].label, "dim"), Text(f"{others[0].probability:.1%}", "dim")]
        table.add_row(*row)
    return table


def _write_json(outcomes: Iterator[Outcome]) -> list[ZfserveError]:
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


def error_document(error: ZfserveError) -> dict[str, object]:
    """A failed call for --json."""
    return {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "field": error.field,
        "retry_after_s": error.retry_after_s,
        "request_id": error.request_id,
    }


def _with_progress(outcomes: Iterator[Outcome], total: int, messages: Console) -> Iterator[Outcome]:
    progress = Progress(
        TextColumn("classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
        disable=total == 1 or not messages.is_terminal,
    )
    with progress:
        yield from progress.track(outcomes, total=total)
