"""Tests which rows and lines the invariance figure has."""

import numpy as np
from fakes.swept_photos import Row, sweep, swept
from matplotlib.figure import Figure
from zfserve_studies.figures.invariance_figure import invariance_figure
from zfserve_studies.figures.style import render
from zfserve_studies.invariance.study import SweptPhoto

ROWS: list[Row] = [(0, 0, 0, 0.5, 1), (10, 0.5, 0.25, 0.25, 1), (20, 1, 0.5, 0.125, 2)]
FLIP: list[Row] = [(0, 0, 0, 0.5, 1), (1, 0.5, 0.25, 0.25, 2)]


def photo(name: str, *, layers: bool = True) -> SweptPhoto:
    return swept(
        name,
        sweep("rotation", ROWS, layers=layers),
        sweep("horizontal-flip", FLIP, layers=layers),
        sweep("vertical-flip", FLIP, layers=layers),
    )


def values_of(figure: Figure, name: str) -> list[list[float]]:
    """Returns the values of each line of the first panel with this name of its upward axis."""
    axes = next(each for each in figure.axes if each.get_ylabel() == name)
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines]


def test_a_row_for_each_kind_has_a_line_for_each_photo() -> None:
    figure = invariance_figure([photo("a.jpg"), photo("b $x$.jpg")])
    assert values_of(figure, "Euclidean") == [[0, 5, 10], [0, 5, 10]]
    assert values_of(figure, "over the norm") == [[0, 0.5, 1], [0, 0.5, 1]]
    assert values_of(figure, "probability") == [[0.5, 0.25, 0.125], [0.5, 0.25, 0.125]]
    titles = [axes.get_title() or axes.get_title("left") for axes in figure.axes]
    assert [title for title in titles if title in ("rotation", "flips")] == ["rotation", "flips"]
    assert titles.count("distance at conv1") == titles.count("distance at last hidden layer") == 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "A  a.jpg: church, 50.0%",
        r"B  b \$x\$.jpg: church, 50.0%",
    ]
    assert render(figure).width == 1400


def test_many_photos_are_pale_lines_with_a_median() -> None:
    figure = invariance_figure([photo(f"{number}.jpg") for number in range(9)])
    lines = values_of(figure, "probability")
    assert len(lines) == 10
    assert lines[-1] == [0.5, 0.25, 0.125]


def test_a_network_without_layers_has_the_probability() -> None:
    figure = invariance_figure([photo("a.jpg", layers=False)])
    assert values_of(figure, "probability") == [[0.5, 0.25, 0.125]]
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["no layer of this\nnetwork can be read"] * 4
    assert render(figure)
