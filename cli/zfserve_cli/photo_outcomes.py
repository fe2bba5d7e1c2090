"""Reports what became of each of several photos. `zfserve classify` and `zfserve explain` use it.

A photo that fails does not stop the others. Its error stands in its place.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from zfserve.errors import ZfserveError

from zfserve_cli.exit_statuses import FAILED, OK
from zfserve_cli.service_call import error_sentence, exit_status, print_error

_Outcome = TypeVar("_Outcome")


def with_progress(outcomes: Iterator[_Outcome], total: int, word: str) -> Iterator[_Outcome]:
    """Yields the outcomes, and shows a progress bar on a terminal if there are several photos.

    Args:
        total: the number of outcomes.
        word: what the command does, such as "classifying".
    """
    messages = Console(stderr=True)
    progress = Progress(
        TextColumn(word),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
        disable=total == 1 or not messages.is_terminal,
    )
    with progress:
        yield from progress.track(outcomes, total=total)


def print_photo_errors(outcomes: Sequence[tuple[Path, object]], arguments: argparse.Namespace) -> list[ZfserveError]:
    """Prints a line for each photo that failed, or one line for all if they failed alike. Returns the errors."""
    errors = [(photo, answer) for photo, answer in outcomes if isinstance(answer, ZfserveError)]
    if len({error_sentence(error, arguments) for _, error in errors}) == 1 and len(errors) > 1:
        print_error(f"{len(errors)} photos: {error_sentence(errors[0][1], arguments)}")
    else:
        for photo, error in errors:
            print_error(f"{photo}: {error_sentence(error, arguments)}")
    return [error for _, error in errors]


def error_document(error: ZfserveError) -> dict[str, object]:
    """Returns the JSON document of a failed call."""
    return {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "field": error.field,
        "retry_after_s": error.retry_after_s,
        "request_id": error.request_id,
    }


def summary_status(errors: Sequence[ZfserveError], total: int) -> int:
    """Returns the exit status of a command for `total` photos, of which some failed with `errors`."""
    if not errors:
        return OK
    return exit_status(errors[0]) if len(errors) == total else FAILED
