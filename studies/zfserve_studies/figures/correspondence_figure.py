"""Draws table 1: the photos with their parts, and how alike the network's changes are for each part."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle
from PIL import Image

from zfserve_studies.correspondence.parts import PhotoParts
from zfserve_studies.correspondence.study import Correspondence
from zfserve_studies.figures.style import (
    FONT_POINTS,
    category_style,
    drawable,
    label_axes,
    new_figure,
    show_image,
)

MOST_PHOTOS = 6
"""At most this many photos are shown above the bars."""

_LONGEST_SIDE = 400


def correspondence_figure(
    result: Correspondence, names: Sequence[str], photos: Sequence[Image.Image], parts: Sequence[PhotoParts]
) -> Figure:
    """Returns the figure. Small bars say that a part means the same to the network in all photos.

    Args:
        result: the table.
        names: the name of each photo.
        photos: the upright photos.
        parts: the parts of each photo.
    """
    shown = min(len(photos), MOST_PHOTOS)
    figure = new_figure(max(2 * shown, 8), 6.5)
    grid = figure.add_gridspec(2, 1, height_ratios=(1, 1.5))
    row = grid[0].subgridspec(1, shown)
    for at in range(shown):
        photo = photos[at].copy()
        photo.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        scale = photo.width / photos[at].width
        axes = figure.add_subplot(row[0, at])
        show_image(axes, np.asarray(photo))
        axes.set_title(drawable(names[at][:22]), fontsize=FONT_POINTS)
        for number, box in enumerate(parts[at].parts.values()):
            place = (box.left * scale, box.top * scale), (box.right - box.left) * scale, (box.bottom - box.top) * scale
            axes.add_patch(Rectangle(*place, fill=False, edgecolor="white", linewidth=3.5))
            axes.add_patch(Rectangle(*place, fill=False, edgecolor=category_style(number)[0], linewidth=2))
    _draw_bars(figure, grid[1], result)
    return figure


def _draw_bars(figure: Figure, place: SubplotSpec, result: Correspondence) -> None:
    axes = figure.add_subplot(place)
    groups = [*next(iter(result.changes.values()))]
    width = 0.8 / len(groups)
    for at, name in enumerate(groups):
        colour, hatch = category_style(at)
        cells = [changes[name] for changes in result.changes.values()]
        axes.bar(
            np.arange(len(cells)) + (at - (len(groups) - 1) / 2) * width,
            [cell.mean for cell in cells],
            width * 0.92,
            yerr=[cell.deviation or 0 for cell in cells],
            capsize=3,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=drawable(name),
        )
    axes.set_xticks(range(len(result.changes)), [drawable(layer) for layer in result.changes])
    label_axes(axes, "layer", "mean sign change of the features", "smaller: the part means the same in all photos")
    axes.legend(fontsize=FONT_POINTS, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
