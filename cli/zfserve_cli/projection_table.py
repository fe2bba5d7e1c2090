"""Draws the table that `zfserve project` prints."""

from collections.abc import Sequence

from rich.bar import Bar
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table
from zfserve.results import Box, Projection

from zfserve_cli.projection_files import SavedProjection
from zfserve_cli.short_number import short_number

BAR_WIDTH = 10
"""The longest bar, in characters."""

FEW_NODES = 3
"""The note names at most this many nodes."""


def projection_table(saved: list[SavedProjection], title: str) -> Table:
    """Returns a table with a row for each projection: its unit, and the region of the photo that the unit sees.

    The bar shows what the map adds to the class that it was chosen for, or else its activation.
    """
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 1), title_style="bold")
    with_files = any(entry.picture for entry in saved)
    for_class = any(entry.projection.for_class for entry in saved)
    numbers = ["map", "row, col", "activation", *(["adds"] if for_class else [])]
    for column in (*numbers, "", "columns × rows", *(["picture"] if with_files else [])):
        # In a narrow terminal only the bar becomes shorter.
        justify: JustifyMethod = "right" if column in numbers else "left"
        longest = None if column else BAR_WIDTH
        table.add_column(column, header_style="dim", justify=justify, no_wrap=bool(column), max_width=longest)
    strengths = [_strength(entry.projection) for entry in saved]
    highest = max(strengths, default=0.0) or 1.0
    for entry, strength in zip(saved, strengths, strict=True):
        projection = entry.projection
        table.add_row(
            str(projection.map),
            _unit_name(projection),
            short_number(projection.activation),
            *([short_number(strength, 3, "+")] if for_class else []),
            Bar(1, 0, max(0.0, strength / highest), color="blue"),
            _box_name(projection.source_box or projection.box),
            *([entry.picture.name] if entry.picture else []),
        )
    return table


def rule_note(projections: Sequence[Projection]) -> str:
    """Returns a line that says where the projections do not follow the paper, or "" where they do."""
    nodes = next((projection.extended_nodes for projection in projections if projection.rule == "extended"), None)
    if nodes is None:
        return ""
    shown = ", ".join(nodes[:FEW_NODES]) + (f" and {len(nodes) - FEW_NODES} more" if len(nodes) > FEW_NODES else "")
    return f"extended rule: activations that are no ReLUs rectify the signal too, which is not in the paper: {shown}"


def _strength(projection: Projection) -> float:
    return projection.activation if projection.attribution is None else projection.attribution


def _unit_name(projection: Projection) -> str:
    return "whole map" if projection.unit is None else f"{projection.unit.row}, {projection.unit.column}"


def _box_name(box: Box) -> str:
    return f"{box.left}–{box.right} × {box.top}–{box.bottom}"
