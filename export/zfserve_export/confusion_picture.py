"""This module draws the confusion matrix. `zfserve evaluate` imports it only for `--confusion`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zfserve_export.evaluation import Score

MOST_LABELLED = 40
"""Names and numbers are drawn for at most this many classes. For more classes they would be unreadable, and only
colours are drawn."""


def draw_confusion(score: Score, labels: Sequence[str], title: str, file: Path) -> None:
    """Writes the picture to `file`, in the format of its suffix.

    Each row adds up to 1. The row of a class without photos stays empty.

    Args:
        score: the score to draw.
        labels: one name per class, in the order of the model's outputs.
        title: the title of the picture.
        file: the file to write.
    """
    counts = score.class_counts()[:, None]
    shares = np.divide(score.confusion, counts, out=np.zeros(score.confusion.shape), where=counts > 0)
    labelled = len(labels) <= MOST_LABELLED
    side = 2.6 + 0.52 * len(labels) if labelled else 12.0
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The square root makes rare confusions visible beside the diagonal.
    shown = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, loc="left", fontsize=12, pad=12)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.spines[:].set_visible(False)
    if labelled:
        places = np.arange(len(labels))
        axes.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, labels)
        axes.set_xticks(places[1:] - 0.5, minor=True)
        axes.set_yticks(places[1:] - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        for row, column in np.argwhere(score.confusion):
            colour = "white" if shares[row, column] > 0.35 else "#08306b"
            text = str(score.confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ticks = np.array([0, 0.05, 0.25, 0.5, 1])
    bar = figure.colorbar(shown, ax=axes, shrink=0.7, label="share of the true class")
    bar.set_ticks(list(np.sqrt(ticks)), labels=[f"{tick:.0%}" for tick in ticks])
    bar.outline.set_visible(False)
    figure.savefig(file, dpi=120)
