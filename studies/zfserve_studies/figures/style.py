"""Defines the style that all figures share: sizes, fonts, colours, and signs for readers who do not see the colours.

Figures are built with matplotlib's classes, and not with pyplot, which keeps global state.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from zfserve_cli.picture_files import write_picture

DOTS_PER_INCH = 100
"""Text of 9 points is 12 pixels high then, and can be read at 100 %."""

FONT_POINTS = 9.0
TITLE_POINTS = 10.5

SEQUENTIAL = "viridis"
"""The palette for values from low to high. It is perceptually uniform, and is read without colours too."""

CATEGORIES = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#999999")
"""Colours for categories, told apart with each form of colour blindness (Okabe and Ito 2008)."""

HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo", "--")
"""A hatch for each of `CATEGORIES`, so that they are told apart without colours too."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""A letter for each category, where an area is too small for a hatch."""


OTHERS = "#d9d9d9"
"""The colour of all categories beyond those that have one."""

_FONT = "DejaVu Sans"
"""Matplotlib brings this font."""


def drawable(text: str) -> str:
    """Returns a text as a figure can draw it: letters that the font lacks become "?", and a dollar stays a dollar.

    Labels and file names of users may have any letters. Matplotlib would take text between dollars for a formula.
    """
    font = font_manager.get_font(font_manager.findfont(_FONT))
    known = "".join(letter if letter.isspace() or font.get_char_index(ord(letter)) else "?" for letter in text)
    return known.replace("$", r"\$")


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """Returns an empty figure with a white ground, laid out so that no text is cut."""
    return Figure((width_inches, height_inches), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def show_image(axes: Axes, pixels: npt.NDArray[np.uint8], title: str = "") -> None:
    """Shows a picture, uint8 (height, width, 3), RGB, without ticks."""
    axes.imshow(pixels, interpolation="nearest")
    bare(axes, title)


def bare(axes: Axes, title: str = "") -> None:
    """Takes the ticks and the frame away, and sets the title."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, fontsize=TITLE_POINTS)


def label_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Names both axes with their units, in readable sizes."""
    axes.set_xlabel(x, fontsize=FONT_POINTS)
    axes.set_ylabel(y, fontsize=FONT_POINTS)
    axes.tick_params(labelsize=FONT_POINTS - 1)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, fontsize=TITLE_POINTS)


def category_style(index: int) -> tuple[str, str]:
    """Returns the colour and the hatch of a category. They repeat after all pairs of them were used."""
    return CATEGORIES[index % len(CATEGORIES)], HATCHES[(index // len(CATEGORIES) + index) % len(HATCHES)]


def render(figure: Figure) -> Image.Image:
    """Returns the figure as a picture, mode RGB."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DOTS_PER_INCH)
    data.seek(0)
    return Image.open(data).convert("RGB")


def save_figure(figure: Figure, file: Path) -> None:
    """Writes the figure in one step. It replaces a file of the same name.

    Raises:
        NotSaved: the file cannot be written.
    """
    write_picture(render(figure), file)


def grid_of(count: int, columns: int) -> Sequence[tuple[int, int]]:
    """Returns the row and the column of each of `count` cells that fill rows of `columns`."""
    return [divmod(index, columns) for index in range(count)]
