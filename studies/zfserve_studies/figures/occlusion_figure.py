"""Draws figure 7 of the paper for one photo: what a network says while a square covers one place after the other."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from zfserve_cli.short_number import short_number

from zfserve_studies.figures.places import PlaceGrid, cell_edges, scaled
from zfserve_studies.figures.style import FONT_POINTS, TITLE_POINTS, bare, drawable, new_figure, show_image
from zfserve_studies.occlusion.categories import Category, categories
from zfserve_studies.occlusion.study import OccludedPhoto, picture
from zfserve_studies.occlusion.text import method_text, places_text, summary_text, title_text

WIDTH_INCHES = 12.0
PANEL_INCHES = 3.4
"""Three panels stand in a row. Each has about this width without its colour bar."""

LOWEST, HIGHEST = 1.6, 4.6
"""The height of a panel in inches, for extreme photos too."""

REFERENCES = 9
"""So many projections from other photos stand in the last row."""

LONGEST_SIDE = 700
"""A photo is scaled down to this side before it is drawn, in pixels."""

BOX_COLOUR, MAP_COLOUR = "#d55e00", "#0072b2"


def occlusion_figure(result: OccludedPhoto, photo: Image.Image) -> Figure:
    """Draws one occluded photo.

    Args:
        result: the answers of the service.
        photo: the upright photo, mode RGB.
    """
    seen = result.seen(photo)
    shapes = (photo.height / photo.width, (seen.bottom - seen.top) / (seen.right - seen.left))
    height = min(max(PANEL_INCHES * max(shapes), LOWEST), HIGHEST)
    heights = [height, height] + ([1.5] if result.references else [])
    found = categories(result)
    figure = new_figure(WIDTH_INCHES, sum(heights) + 2.6 + 0.22 * ((len(found) + 2) // 3))
    figure.get_layout_engine().set(h_pad=0.07)  # type: ignore[union-attr, call-arg]
    grid = GridSpec(len(heights), 3, figure, height_ratios=heights)
    places = _place_grid(result, photo)
    _draw_photo(figure.add_subplot(grid[0, 0]), result, places)
    _draw_sums(figure.add_subplot(grid[0, 1]), result, places)
    _draw_projection(figure, grid, result)
    _draw_probabilities(figure.add_subplot(grid[1, 0]), result, places)
    _draw_labels(figure.add_subplot(grid[1, 1]), result, places, found)
    if result.references:
        _draw_references(figure, grid, result)
    figure.suptitle(_heading(result), fontsize=TITLE_POINTS, x=0.01, ha="left", linespacing=1.5)
    _legend(figure, found)
    return figure


def _heading(result: OccludedPhoto) -> str:
    lines = [title_text(result), method_text(result), *textwrap.wrap(summary_text(result), 140)]
    return drawable("\n".join(lines))


def _place_grid(result: OccludedPhoto, photo: Image.Image) -> PlaceGrid:
    plan, seen = result.occlusion.plan, result.seen(photo)
    small = photo.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    height, width = result.input_size
    return PlaceGrid(
        photo=np.asarray(small),
        size=photo.size,
        seen=seen,
        across=cell_edges(plan.lefts, plan.size, seen.left, (seen.right - seen.left) / width),
        down=cell_edges(plan.tops, plan.size, seen.top, (seen.bottom - seen.top) / height),
    )


def _draw_photo(axes: Axes, result: OccludedPhoto, places: PlaceGrid) -> None:
    """Draws the photo with the box that matters most, and the region that the map's strongest unit sees."""
    axes.imshow(places.photo, extent=(0, places.size[0], places.size[1], 0))
    bare(axes, "(a) the photo, and the place that matters most")
    _fade_unseen(axes, places)
    summary = result.occlusion.summary
    boxes = [(summary.box, BOX_COLOUR, "solid")]
    if result.projection is not None:
        boxes.append((result.projection.box, MAP_COLOUR, "dashed"))
    for box, colour, dashes in boxes:
        left, top, width, height = scaled(box, places.seen, result.input_size)
        for line, ground in ((4.5, "white"), (2.2, colour)):
            axes.add_patch(
                Rectangle((left, top), width, height, fill=False, edgecolor=ground, linewidth=line, linestyle=dashes)
            )


def _fade_unseen(axes: Axes, places: PlaceGrid) -> None:
    """Makes the part of the photo paler that the network does not see."""
    (width, height), seen = places.size, places.seen
    for left, top, right, bottom in (
        (0, 0, seen.left, height),
        (seen.right, 0, width, height),
        (seen.left, 0, seen.right, seen.top),
        (seen.left, seen.bottom, seen.right, height),
    ):
        if right > left and bottom > top:
            axes.add_patch(
                Rectangle((left, top), right - left, bottom - top, facecolor="white", alpha=0.7, linewidth=0)
            )


def _draw_sums(axes: Axes, result: OccludedPhoto, places: PlaceGrid) -> None:
    plan = result.occlusion.plan
    if plan.map is None:
        _say(axes, f"(b) no map: {result.note}")
        return
    values = np.array(result.occlusion.map_sums)
    limits = float(min(values.min(), plan.map_sum)), float(max(values.max(), plan.map_sum))
    title = drawable(f"(b) sum of map {plan.map} of {plan.layer}")
    _with_bar(axes, places, values, title, limits, plan.map_sum, short_number(plan.map_sum))


def _draw_probabilities(axes: Axes, result: OccludedPhoto, places: PlaceGrid) -> None:
    plan = result.occlusion.plan
    values = np.array(result.occlusion.probabilities)
    highest = float(max(values.max(), plan.for_class.probability))
    title = drawable(f"(d) probability of {textwrap.shorten(plan.for_class.label, 26, placeholder='...')}")
    # A scale from 0 to 1 would hide everything about a class that is improbable everywhere.
    limits = (0.0, max(highest, 1e-9))
    _with_bar(axes, places, values, title, limits, plan.for_class.probability, f"{plan.for_class.probability:.3f}")


def _with_bar(
    axes: Axes,
    places: PlaceGrid,
    values: np.ndarray,
    title: str,
    limits: tuple[float, float],
    untouched: float,
    untouched_text: str,
) -> None:
    if limits[0] == limits[1]:
        limits = (limits[0] - 0.5, limits[1] + 0.5)
    mesh = places.draw_values(axes, values, title, limits)
    row, column = np.unravel_index(values.argmin(), values.shape)
    places.mark(axes, int(row), int(column), BOX_COLOUR)
    bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=FONT_POINTS - 1)
    bar.ax.axhline(untouched, color="white", linewidth=4)
    bar.ax.axhline(untouched, color=BOX_COLOUR, linewidth=2)
    axes.set_xlabel(f"frame: lowest; orange on the scale: no square, {untouched_text}", fontsize=FONT_POINTS)


def _draw_labels(axes: Axes, result: OccludedPhoto, places: PlaceGrid, found: list[Category]) -> None:
    classes = np.array(result.occlusion.best_classes)
    places.draw_categories(axes, classes, found, "(e) most probable label", PANEL_INCHES * 100)


def _draw_projection(figure: Figure, grid: GridSpec, result: OccludedPhoto) -> None:
    """Draws the map's projection, and the part of the photo that it comes from, below one another."""
    projection, plan = result.projection, result.occlusion.plan
    above, below = figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2])
    if projection is None or projection.png is None:
        _say(above, f"(c) no projection: {result.note}")
        bare(below)
        return
    unit = f"row {plan.unit.row}, column {plan.unit.column}" if plan.unit is not None else "strongest unit"
    show_image(above, np.asarray(picture(projection.png)), f"(c) projection of map {plan.map}")
    caption = f"its strongest unit: {unit}, {short_number(projection.activation)}"
    if projection.rule != "paper":
        caption += "\nnot all steps follow the paper's rule"
    above.set_xlabel(caption, fontsize=FONT_POINTS)
    show_image(below, np.asarray(picture(projection.patch_png)), "(c) the part of the photo behind it")
    below.set_xlabel("the dashed blue box in (a)", fontsize=FONT_POINTS)


def _draw_references(figure: Figure, grid: GridSpec, result: OccludedPhoto) -> None:
    row = grid[2, :].subgridspec(1, REFERENCES)
    for at in range(REFERENCES):
        axes = figure.add_subplot(row[0, at])
        if at >= len(result.references):
            bare(axes)
            continue
        each = result.references[at]
        title = drawable(f"(c) map {result.occlusion.plan.map} in other photos") if at == 0 else ""
        show_image(axes, np.asarray(each.projection))
        axes.set_title(title, fontsize=FONT_POINTS, loc="left")
        name = textwrap.shorten(each.photo, 16, placeholder="...") if " " in each.photo else each.photo[:16]
        axes.set_xlabel(drawable(f"{name}\n{short_number(each.activation)}"), fontsize=FONT_POINTS - 2)


def _say(axes: Axes, text: str) -> None:
    """Writes why a panel is empty in the place of the panel."""
    bare(axes)
    axes.text(0, 1, drawable(textwrap.fill(text, 42)), va="top", fontsize=FONT_POINTS, transform=axes.transAxes)


def _legend(figure: Figure, found: list[Category]) -> None:
    handles = [
        Patch(
            facecolor=each.colour,
            hatch=each.hatch * 2,
            edgecolor="#00000088",
            label=drawable(
                f"{each.letter}  {textwrap.shorten(each.label, 40, placeholder='...')}, {places_text(each.count)}"
            ),
        )
        for each in found
    ]
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=3,
        fontsize=FONT_POINTS,
        frameon=False,
        title="(e) most probable label",
        title_fontsize=FONT_POINTS,
        alignment="left",
        handlelength=2.6,
        handleheight=1.4,
    )
