"""Draws values at the places of a square, over the photo that the square covers."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import Normalize
from matplotlib.patches import Polygon
from zfserve.results import Box

from zfserve_studies.figures.style import SEQUENTIAL, bare
from zfserve_studies.occlusion.categories import Category

Edges = npt.NDArray[np.float64]
Grid = npt.NDArray[np.float64]

PALE = 0.25
"""The photo beneath the values has this opacity. It shows where the values lie."""

LETTER_PIXELS = 15.0
"""Letters stand at least this far apart, in pixels of the figure."""

LETTERS_APART = 48.0
"""The letters of one large area stand this far apart, in pixels of the figure."""

HATCH_COLOUR = "#00000066"


@dataclass(frozen=True)
class PlaceGrid:
    """Holds the cells of the places, in pixels of the upright photo. A cell lies around the centre of its square.

    Attributes:
        photo: uint8 (height, width, 3), RGB, the upright photo. It may be scaled down.
        size: the width and the height of the upright photo, in its own pixels.
        seen: the region that the model's input covers, in the same pixels. Values are drawn over this part only.
        across: float64 (columns + 1,), the edges of the cells from left to right.
        down: float64 (rows + 1,), the edges of the cells from top to bottom.
    """

    photo: npt.NDArray[np.uint8]
    size: tuple[int, int]
    seen: Box
    across: Edges
    down: Edges

    def draw_values(self, axes: Axes, values: Grid, title: str, limits: tuple[float, float]) -> QuadMesh:
        """Draws a colour for each value, and returns what a colour bar describes.

        Args:
            values: float64 (rows, columns).
            limits: the values of the darkest and of the lightest colour.
        """
        self._ground(axes, title)
        return axes.pcolormesh(self.across, self.down, values, cmap=SEQUENTIAL, norm=Normalize(*limits))

    def draw_categories(
        self, axes: Axes, classes: npt.NDArray[np.int64], found: list[Category], title: str, width_pixels: float
    ) -> None:
        """Draws the colour and the hatch of each place's category, and letters where they fit.

        Args:
            classes: int64 (rows, columns), the class at each place.
            width_pixels: the width of `axes`, in pixels of the figure.
        """
        self._ground(axes, title)
        for category in found:
            chosen = np.isin(classes, category.indices)
            rows, columns = (index.tolist() for index in np.nonzero(chosen))
            corners = [self._corners(row, column) for row, column in zip(rows, columns, strict=True)]
            axes.add_collection(
                PolyCollection(
                    corners, facecolor=category.colour, hatch=category.hatch, edgecolor=HATCH_COLOUR, linewidth=0
                ),
                autolim=False,
            )
        for at, (row, column) in self._letters(classes, found, width_pixels):
            self._write(axes, row, column, found[at].letter)

    def _write(self, axes: Axes, row: int, column: int, letter: str) -> None:
        x, y = self._corners(row, column).mean(axis=0)
        # A white ground keeps the letter readable on dark colours and on hatches.
        ground = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axes.text(x, y, letter, ha="center", va="center", fontsize=7.5, bbox=ground)

    def mark(self, axes: Axes, row: int, column: int, colour: str) -> None:
        """Draws a frame around one cell."""
        for line, ground in ((4.0, "white"), (2.0, colour)):
            axes.add_patch(Polygon(self._corners(row, column), fill=False, edgecolor=ground, linewidth=line))

    def _corners(self, row: int, column: int) -> npt.NDArray[np.float64]:
        (left, right), (top, bottom) = self.across[column : column + 2], self.down[row : row + 2]
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])

    def _ground(self, axes: Axes, title: str) -> None:
        axes.imshow(self.photo, extent=(0, self.size[0], self.size[1], 0), alpha=PALE, interpolation="bilinear")
        axes.set_xlim(self.seen.left, self.seen.right)
        axes.set_ylim(self.seen.bottom, self.seen.top)
        bare(axes, title)

    def _letters(
        self, classes: npt.NDArray[np.int64], found: list[Category], width_pixels: float
    ) -> list[tuple[int, tuple[int, int]]]:
        """Returns categories with rows and columns of letters: one in each area, and several in large areas.

        Letters of small areas are left out where they would touch those of larger ones.
        """
        pixel = (self.seen.right - self.seen.left) / width_pixels
        centres = np.stack(
            np.meshgrid(*((edges[1:] + edges[:-1]) / (2 * pixel) for edges in (self.down, self.across)), indexing="ij"),
            axis=-1,
        )
        placed: list[tuple[int, tuple[int, int]]] = []
        areas = [(at, area) for at, each in enumerate(found) for area in areas_of(np.isin(classes, each.indices))]
        for spacing in (LETTER_PIXELS, LETTERS_APART):
            for at, area in sorted(areas, key=lambda each: -len(each[1])):
                middle = centres[tuple(np.transpose(area))].mean(axis=0)
                for cell in sorted(area, key=lambda each: float(np.abs(centres[each] - middle).sum())):
                    others = centres[tuple(np.transpose([other for _, other in placed]))] if placed else centres[:0, 0]
                    if (np.abs(others - centres[cell]).max(axis=1, initial=0) >= spacing).all():
                        placed.append((at, cell))
                        if spacing == LETTER_PIXELS:
                            break
        return placed


def areas_of(chosen: npt.NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Returns the rows and columns of the cells of each area: of cells that are chosen and share a side.

    Args:
        chosen: bool (rows, columns).
    """
    left = {(int(row), int(column)) for row, column in np.argwhere(chosen)}
    areas = []
    while left:
        area, edge = [], [min(left)]
        left.remove(edge[0])
        while edge:
            row, column = edge.pop()
            area.append((row, column))
            near = {(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)} & left
            left -= near
            edge += sorted(near)
        areas.append(area)
    return areas


def cell_edges(starts: tuple[int, ...], size: int, first: float, scale: float) -> Edges:
    """Returns the edges of the cells of one axis, in pixels of the photo.

    Each place is drawn around the centre of its square. Neighbouring cells meet halfway. The first and the last cell
    reach as far out as they reach in.

    Args:
        starts: the first pixel of the square at each place, rising.
        size: the side of the square.
        first: where the model's input begins in the photo.
        scale: the pixels of the photo for each pixel of the input.
    """
    centres = np.array(starts, dtype=np.float64) + size / 2
    if len(centres) == 1:
        edges = np.array([centres[0] - size / 2, centres[0] + size / 2])
    else:
        middles = (centres[:-1] + centres[1:]) / 2
        edges = np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])
    return first + scale * edges


def scaled(box: Box, seen: Box, input_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Returns left, top, width and height of a box of the input, in pixels of the photo.

    Args:
        box: the box, in pixels of the model's input.
        seen: the region of the photo that the input covers.
        input_size: the height and the width of the input.
    """
    across = (seen.right - seen.left) / input_size[1]
    down = (seen.bottom - seen.top) / input_size[0]
    return (
        seen.left + across * box.left,
        seen.top + down * box.top,
        across * (box.right - box.left),
        down * (box.bottom - box.top),
    )
