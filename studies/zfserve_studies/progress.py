"""Shows the progress of a study on a terminal, and says what happened."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(word: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar while its body runs, and removes it at the end. It shows nothing if stderr is no terminal.

    Args:
        word: what the study does, such as "occluding church.jpg".
        total: the number of steps, if it is known already.

    Yields:
        A function that takes the number of steps that are done, and their total or None if that has not changed.
    """
    messages = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as progress:
        # A photo's name may have brackets, which rich would take for markup.
        task = progress.add_task(word.replace("[", r"\["), total=total)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def say(text: str) -> None:
    """Prints a line to standard error."""
    Console(stderr=True).print(escape(text), soft_wrap=True, highlight=False)
