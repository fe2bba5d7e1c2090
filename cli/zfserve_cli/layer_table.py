"""Draws the tables of layers that `zfserve info` prints: one row for each layer, or one for each stage."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text
from zfserve.model_description import Layer

_TEXT = {"stage", "layer", "kind", "stands for", "rule"}
"""These columns hold names. The others hold numbers."""


def layer_table(layers: Sequence[Layer]) -> Table:
    """Returns a table with a row for each layer. Layers of one stage stand together."""
    extended = any(layer.rule != "paper" for layer in layers)
    stages = any(layer.stage for layer in layers)
    table = _table(
        *(["stage"] if stages else []),
        *("layer", "kind", "maps", "size", "sees", "stride", "offset"),
        *(["rule"] if extended else []),
    )
    for stage, members in groupby(layers, key=lambda layer: layer.stage):
        for place, layer in enumerate(members):
            table.add_row(
                *([Text(stage if place == 0 else "")] if stages else []),
                Text(layer.name),
                layer.kind,
                *_figures(layer),
                _both(layer.offset, layer.offset_width),
                *([layer.rule] if extended else []),
                style="dim" if layer.kind == "pool" else "",
            )
    return table


def stage_table(layers: Sequence[Layer]) -> Table:
    """Returns a table with a row for each stage, and the layer that the stage's name stands for."""
    extended = any(layer.rule != "paper" for layer in layers)
    table = _table("stage", "layers", "stands for", "maps", "size", "sees", "stride", *(["rule"] if extended else []))
    for stage, group in groupby(layers, key=lambda layer: layer.stage):
        members = list(group)
        layer = named_layer(members)
        table.add_row(
            Text(stage, "bold"),
            str(len(members)),
            Text(layer.name),
            *_figures(layer),
            *([layer.rule] if extended else []),
        )
    return table


def named_layer(stage: Sequence[Layer]) -> Layer:
    """Returns the layer that the name of a stage stands for: its last layer that is no pool, or else its last layer.

    Args:
        stage: the layers of the stage, at least one.
    """
    return next((layer for layer in reversed(stage) if layer.kind != "pool"), stage[-1])


def _figures(layer: Layer) -> tuple[str, str, str, str]:
    sees = f"{_both(layer.receptive_field, layer.receptive_field_width)} px"
    return (
        str(layer.channels),
        f"{layer.width} × {layer.height}",
        "whole image" if layer.whole_image else sees,
        f"{_both(layer.stride, layer.stride_width)} px",
    )


def _both(rows: int, columns: int) -> str:
    """Returns one number where rows and columns are alike, else columns × rows."""
    return str(rows) if rows == columns else f"{columns} × {rows}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in columns:
        justify: JustifyMethod = "left" if column in _TEXT else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    return table
