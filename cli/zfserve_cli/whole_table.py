"""Prints tables whose names stay whole in narrow terminals, so that users can copy them."""

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

_NO_LIMIT = 100_000
"""Measures a table without the limit of the terminal's width, in characters."""


def print_whole(table: Table) -> None:
    """Prints a table. Its title and columns with `no_wrap` are never cut off or broken.

    If they do not fit, the lines are longer than the terminal is wide, and the terminal breaks them.
    """
    console = Console()
    if table.title:
        console.print(table.title, style=table.title_style, soft_wrap=True, highlight=False)
        table.title = None
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(_measured(console, cell).maximum for cell in (column.header, *column.cells))
    needed = _measured(console, table).minimum
    (Console(width=needed) if needed > console.width else console).print(table)


def _measured(console: Console, part: RenderableType) -> Measurement:
    return Measurement.get(console, console.options.update(max_width=_NO_LIMIT), part)
