"""Draws figure 5 of the paper: how far features move while photos are moved, scaled, turned or recoloured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.lines import Line2D
from PIL import Image
from zfserve.studies import FeatureDistance, TransformKind, TransformStep

from zfserve_studies.figures.style import (
    CATEGORIES,
    FONT_POINTS,
    LETTERS,
    TITLE_POINTS,
    bare,
    drawable,
    label_axes,
    new_figure,
)
from zfserve_studies.invariance.study import EXAMPLES, FLIPS, Sweep, SweptPhoto, change_size
from zfserve_studies.occlusion.study import picture

WIDTH_INCHES = 14.0
ROW_INCHES = 3.3
TILE = 84
"""The side of an example, in pixels of the figure."""

MARKERS = "os^DvPX*"
DASHES = ("solid", "dashed", "dashdot", "dotted")

MOST_LINES = 8
"""The lines of more photos cannot be told apart. They are pale then, and their median is black."""

AXES_NAMES: dict[TransformKind, str] = {
    "vertical-translation": "pixels downwards",
    "horizontal-translation": "pixels to the right",
    "scale": "factor of enlargement",
    "rotation": "degrees, anticlockwise",
    "hue": "degrees on the circle of hues",
    "brightness": "factor of brightness",
}

Values = Callable[[TransformStep], float | None]


@dataclass(frozen=True)
class Panel:
    """Describes one panel of a row.

    Attributes:
        values: returns the value of a step. None if the network has none.
        name: the name of the axis upwards.
        title: the title of the column.
    """

    values: Values
    name: str
    title: str = ""


def invariance_figure(photos: Sequence[SweptPhoto]) -> Figure:
    """Draws all photos: a row for each kind of sweep, and one for both flips.

    Args:
        photos: the photos, at least one, all swept through the same kinds.
    """
    kinds = [*photos[0].sweeps]
    rows: list[tuple[TransformKind, ...]] = [(kind,) for kind in kinds if kind not in FLIPS]
    if flips := tuple(kind for kind in kinds if kind in FLIPS):
        rows.append(flips)
    legend_rows = 1 if len(photos) > MOST_LINES else (len(photos) + 3) // 4
    figure = new_figure(WIDTH_INCHES, ROW_INCHES * len(rows) + 0.75 + 0.25 * legend_rows)
    grid = GridSpec(len(rows), 4, figure, width_ratios=[1.25, 1, 1, 1])
    for at, row in enumerate(rows):
        _draw_row(figure, [grid[at, column] for column in range(4)], row, photos)
    first = photos[0].sweeps[kinds[0]].steps[0]
    figure.suptitle(
        drawable(
            f"{first.model.name} {first.model.version} · {first.computation.precision}, {first.computation.engine} · "
            f"border {first.border}, resampling {first.resampling} · distances to the features of the untouched photo"
        ),
        fontsize=TITLE_POINTS,
        x=0.01,
        ha="left",
    )
    _legend(figure, photos)
    return figure


def _draw_row(
    figure: Figure, cells: list[SubplotSpec], kinds: tuple[TransformKind, ...], photos: Sequence[SweptPhoto]
) -> None:
    _draw_examples(figure.add_subplot(cells[0]), kinds, photos)
    first = photos[0].sweeps[kinds[0]].steps[0]
    for cell, choose in ((cells[1], _low), (cells[2], _high)):
        layer = choose(first)
        if layer is None:
            axes = figure.add_subplot(cell)
            bare(axes)
            axes.text(0.5, 0.5, "no layer of this\nnetwork can be read", ha="center", fontsize=FONT_POINTS)
            continue
        halves = cell.subgridspec(2, 1, hspace=0.02)
        above, below = (figure.add_subplot(halves[at, 0]) for at in range(2))
        title = "last hidden layer" if layer.layer == "features" else layer.layer
        _draw(above, kinds, photos, Panel(_distance(choose), "Euclidean", f"distance at {title}"))
        above.set_xlabel("")
        above.tick_params(labelbottom=False)
        _draw(below, kinds, photos, Panel(_relative(choose), "over the norm"))
    panel = Panel(lambda step: step.for_class.probability, "probability", "probability of the class")
    axes = figure.add_subplot(cells[3])
    _draw(axes, kinds, photos, panel)
    axes.set_ylim(-0.03, 1.03)


def _low(step: TransformStep) -> FeatureDistance | None:
    return step.low


def _high(step: TransformStep) -> FeatureDistance | None:
    return step.high


def _distance(choose: Callable[[TransformStep], FeatureDistance | None]) -> Values:
    return lambda step: None if (found := choose(step)) is None else found.distance


def _relative(choose: Callable[[TransformStep], FeatureDistance | None]) -> Values:
    return lambda step: None if (found := choose(step)) is None else found.relative


def _draw(axes: Axes, kinds: tuple[TransformKind, ...], photos: Sequence[SweptPhoto], panel: Panel) -> None:
    if kinds[0] in FLIPS:
        _draw_flips(axes, kinds, photos, panel)
    else:
        _draw_lines(axes, [photo.sweeps[kinds[0]] for photo in photos], panel)


def _draw_lines(axes: Axes, sweeps: Sequence[Sweep], panel: Panel) -> None:
    label_axes(axes, AXES_NAMES[sweeps[0].kind], panel.name, drawable(panel.title))
    many = len(sweeps) > MOST_LINES
    curves = [_curve(sweep, panel.values) for sweep in sweeps]
    for at, (steps, values) in enumerate(curves):
        style: dict[str, Any] = {"color": "#bbbbbb", "linewidth": 0.8} if many else _style(at, len(steps))
        axes.plot(steps, values, **style)
    if many and len({tuple(steps) for steps, _ in curves}) == 1:
        axes.plot(curves[0][0], np.median([values for _, values in curves], axis=0), color="black", linewidth=2)


def _draw_flips(axes: Axes, kinds: tuple[TransformKind, ...], photos: Sequence[SweptPhoto], panel: Panel) -> None:
    """Draws a sign for each photo above "none" and each flip. Lines would suggest that there is something between."""
    label_axes(axes, "", panel.name, drawable(panel.title))
    names = ["none", *(kind.removesuffix("-flip") for kind in kinds)]
    axes.set_xticks(range(len(names)), names, fontsize=FONT_POINTS)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel("flip", fontsize=FONT_POINTS)
    spread = np.linspace(-0.28, 0.28, len(photos)) if len(photos) > 1 else np.zeros(1)
    for at, photo in enumerate(photos):
        steps = [photo.sweeps[kinds[0]].untouched, *(_flipped(photo.sweeps[kind]) for kind in kinds)]
        values = [np.nan if (value := panel.values(step)) is None else value for step in steps]
        many = len(photos) > MOST_LINES
        style: dict[str, Any] = {"color": "#999999", "marker": "o", "markersize": 3} if many else _style(at, 1)
        axes.plot(np.arange(len(names)) + spread[at], values, **style | {"linestyle": "none"})


def _flipped(sweep: Sweep) -> TransformStep:
    return max(sweep.steps, key=lambda each: change_size(sweep.kind, each.step))


def _curve(sweep: Sweep, values: Values) -> tuple[list[float], list[float]]:
    pairs = [(each.step, value) for each in sweep.steps if (value := values(each)) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _style(at: int, steps: int) -> dict[str, Any]:
    """Returns the colour, the dashes and the marker of a photo's line. Not every step has a marker."""
    return {
        "color": CATEGORIES[at % len(CATEGORIES)],
        "linestyle": DASHES[at % len(DASHES)],
        "marker": MARKERS[at % len(MARKERS)],
        "markevery": max(1, steps // 7),
        "markersize": 5,
        "linewidth": 1.5,
    }


def _draw_examples(axes: Axes, kinds: tuple[TransformKind, ...], photos: Sequence[SweptPhoto]) -> None:
    """Draws transformed inputs: a line for each of the first photos, and a column for each of some steps."""
    shown = [photo for photo in photos[:EXAMPLES] if all(photo.sweeps[kind].examples for kind in kinds)]
    if not shown:
        bare(axes)
        return
    columns = [_tiles(photo, kinds) for photo in shown]
    names = [name for name, _ in columns[0]]
    sheet = np.concatenate([np.concatenate([tile for _, tile in row], axis=1) for row in columns])
    axes.imshow(sheet, interpolation="nearest")
    bare(axes)
    axes.set_xticks([TILE * (at + 0.5) for at in range(len(names))], names, fontsize=FONT_POINTS - 2)
    axes.set_yticks([TILE * (at + 0.5) for at in range(len(shown))], LETTERS[: len(shown)], fontsize=FONT_POINTS)
    axes.tick_params(length=0)
    title = "flips" if kinds[0] in FLIPS else kinds[0].replace("-", " ")
    axes.set_title(title, fontsize=TITLE_POINTS, fontweight="bold", loc="left")


def _tiles(photo: SweptPhoto, kinds: tuple[TransformKind, ...]) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Returns the name and the pixels of each example of a photo, uint8 (TILE, TILE, 3)."""
    if kinds[0] in FLIPS:
        pairs = [("none", photo.sweeps[kinds[0]].examples[0].png)]
        pairs += [(kind.removesuffix("-flip"), photo.sweeps[kind].examples[-1].png) for kind in kinds]
    else:
        pairs = [(f"{each.step:g}", each.png) for each in photo.sweeps[kinds[0]].examples]
    return [(name, np.asarray(_tile(png))) for name, png in pairs]


def _tile(png: bytes) -> Image.Image:
    """Returns an example with a white edge, so that neighbours stand apart."""
    tile = Image.new("RGB", (TILE, TILE), "white")
    tile.paste(picture(png).resize((TILE - 4, TILE - 4), Image.Resampling.LANCZOS), (2, 2))
    return tile


def _legend(figure: Figure, photos: Sequence[SweptPhoto]) -> None:
    if len(photos) > MOST_LINES:
        handles = [
            Line2D([], [], color="#bbbbbb", label=f"each of {len(photos)} photos"),
            Line2D([], [], color="black", linewidth=2, label="median"),
        ]
    else:
        handles = [
            Line2D([], [], label=drawable(f"{LETTERS[at]}  {photo.name}: {_class_text(photo)}"), **_style(at, 1))
            for at, photo in enumerate(photos)
        ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=4, fontsize=FONT_POINTS, frameon=False, handlelength=4
    )


def _class_text(photo: SweptPhoto) -> str:
    untouched = next(iter(photo.sweeps.values())).steps[0].untouched
    return f"{untouched.label[:30]}, {untouched.probability:.1%}"
