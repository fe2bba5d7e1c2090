"""Tests the shared style of the figures."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image
from zfserve_studies.figures.style import CATEGORIES, category_style, grid_of, new_figure, save_figure, show_image


def test_a_figure_becomes_a_picture_of_its_size(tmp_path: Path) -> None:
    figure = new_figure(3, 2)
    show_image(figure.add_subplot(), np.full((4, 4, 3), 255, np.uint8), "a title")
    save_figure(figure, tmp_path / "figure.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]
    picture = Image.open(tmp_path / "figure.png")
    assert (picture.size, picture.mode) == ((300, 200), "RGB")
    assert np.asarray(picture).min() < 100, "the title is dark"


def test_sixty_four_categories_look_different() -> None:
    styles = [category_style(index) for index in range(64)]
    assert len(set(styles)) == 64
    neighbours = itertools.pairwise(styles)
    assert all(one[1] != other[1] for one, other in neighbours), "neighbours differ without colours too"
    assert styles[0][0] == CATEGORIES[0]


def test_cells_fill_rows() -> None:
    assert grid_of(5, 3) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
