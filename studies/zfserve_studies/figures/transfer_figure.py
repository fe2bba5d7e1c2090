"""Draws table 7 and figure 9: accuracy on new classes by layer, and by the number of photos of each class."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from zfserve_studies.figures.style import FONT_POINTS, category_style, drawable, label_axes, new_figure
from zfserve_studies.transfer.experiment import Point

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""A marker for each line, so that lines are told apart without colours too."""


def transfer_figure(results: Mapping[str, Sequence[Point]], classes: int) -> Figure:
    """Returns the figure.

    Args:
        results: for each layer the accuracy for each number of photos.
        classes: the number of classes.
    """
    figure = new_figure(10.5, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    for at, (layer, points) in enumerate(results.items()):
        style = {"color": category_style(at)[0], "marker": MARKERS[at % len(MARKERS)], "capsize": 3, "markersize": 5}
        left.errorbar(
            [point.photos for point in points],
            [100 * point.mean for point in points],
            yerr=[100 * (point.deviation or 0) for point in points],
            label=drawable(layer),
            **style,
        )
        last = points[-1]
        right.errorbar([at], [100 * last.mean], yerr=[100 * (last.deviation or 0)], linestyle="none", **style)
    for axes in (left, right):
        axes.axhline(100 / classes, color="#666666", linestyle=":", label="chance" if axes is left else None)
    most = next(iter(results.values()))[-1].photos
    label_axes(left, "photos of each class to learn from", "mean of the per-class accuracies, %", "figure 9")
    label_axes(right, "layer", "", f"table 7, with {most} photos of each class")
    right.set_xticks(range(len(results)), [drawable(layer) for layer in results], rotation=30, ha="right")
    left.legend(fontsize=FONT_POINTS, framealpha=1, edgecolor="none")
    return figure
