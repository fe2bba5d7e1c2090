"""Draws what the replacement of feature maps does to the accuracy, whole and by class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from zfserve_studies.ablation.effects import Effects
from zfserve_studies.ablation.groups import Groups
from zfserve_studies.figures.style import CATEGORIES, FONT_POINTS, SEQUENTIAL, drawable, label_axes, new_figure

MOST_SHOWN = 24
"""The figure shows this many groups, those with the lowest accuracy."""


def ablation_figure(effects: Effects, groups: Groups, classes: Sequence[str], title: str) -> Figure:
    """Returns the figure.

    Args:
        effects: the accuracies.
        groups: the groups of maps.
        classes: the names of the classes.
        title: says the layer and the replacement.
    """
    shown = effects.ranked()[:MOST_SHOWN]
    names = ["untouched", *(group_name(groups[at]) for at in shown)]
    rows = np.array([0, *(at + 1 for at in shown)])
    figure = new_figure(12, max(3.5, 1.6 + 0.24 * len(names)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    colours = [CATEGORIES[7], *[CATEGORIES[0]] * len(shown)]
    left.barh(range(len(names)), 100 * effects.whole[rows], color=colours)
    left.axvline(100 * effects.whole[0], color="#333333", linestyle=":")
    left.set_yticks(range(len(names)), names)
    left.set_xlim(0, 100)
    left.invert_yaxis()
    label_axes(left, "accuracy, %", "maps replaced", drawable(title))
    change = 100 * (effects.by_class[rows] - effects.by_class[0])
    low = min(-1.0, float(np.nanmin(change)))
    picture = right.imshow(change, aspect="auto", cmap=SEQUENTIAL, vmin=low, vmax=max(0.0, float(np.nanmax(change))))
    right.set_xticks(range(len(classes)), [drawable(name[:22]) for name in classes], rotation=35, ha="right")
    label_axes(right, "", "", "change by class, in points")
    right.grid(visible=False)
    figure.colorbar(picture, ax=right).ax.tick_params(labelsize=FONT_POINTS - 1)
    return figure


def group_name(maps: Sequence[int]) -> str:
    """Returns a short name of a group, such as "7" or "0 to 15" or "3, 9 and 12 more"."""
    if len(maps) > 2 and maps[-1] - maps[0] == len(maps) - 1:
        return f"{maps[0]} to {maps[-1]}"
    more = f" and {len(maps) - 2} more" if len(maps) > 2 else ""
    return ", ".join(str(at) for at in maps[:2]) + more
