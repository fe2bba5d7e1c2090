"""Draws an atlas: contact sheets of many maps, and one HTML page.

All projections of an atlas share one scale. If each had its own, a map that hardly responds would look alive.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from zfserve_cli.picture_files import write_picture
from zfserve_photos import contact_sheet as sheets
from zfserve_photos.contact_sheet import SLOT_COLOUR, contact_sheet

from zfserve_studies.atlas.atlas_document import Atlas
from zfserve_studies.atlas.tiles import Tile, read_projection
from zfserve_studies.run_folder import RunFolder

SHEET_COLUMNS, SHEET_ROWS = 4, 4

SHEET_PIXELS = 72
"""The side of a tile on a sheet, and on the HTML page of a large layer."""

FEW_MAPS, LARGE_PIXELS = 64, 96
"""The HTML page of a layer with at most so many maps has larger tiles."""

ACROSS = 3
"""A map has its nine photos in three rows."""

GAP = 2

SCALE_PERCENTILE = 90
"""The scale is this percentile of the peaks of all tiles. The strongest tiles are clipped."""

TEMPLATE = Path(__file__).with_name("atlas_page.html")


class AtlasPainter:
    """Draws the pictures of one atlas from the tiles in its folder."""

    def __init__(self, atlas: Atlas, run: RunFolder) -> None:
        self._atlas = atlas
        self._run = run
        self.scale = self._common_scale() if atlas.projections else 0.0

    def write_sheets(self) -> list[Path]:
        """Writes a sheet for each page of maps. Returns the files.

        Raises:
            NotSaved: a file cannot be written.
        """
        maps = self._atlas.strongest.maps
        step = SHEET_COLUMNS * SHEET_ROWS
        files = []
        for page, first in enumerate(range(0, len(maps), step), 1):
            file = self._run.folder / f"page-{page:03}.png"
            write_picture(self._sheet(maps[first : first + step]), file)
            files.append(file)
        return files

    def html(self) -> Iterator[str]:
        """Yields the parts of the HTML page, so that the page of a large layer need not lie in memory."""
        maps = self._atlas.strongest.maps
        side = LARGE_PIXELS if len(maps) <= FEW_MAPS else SHEET_PIXELS
        head, tail = TEMPLATE.read_text(encoding="utf-8").split("{{maps}}")
        yield head.replace("{{title}}", escape(self._title())).replace("{{notes}}", self._notes())
        for index in maps:
            yield self._figure(index, side)
        yield tail

    def _title(self) -> str:
        question = self._atlas.question
        return f"{question.model.name} {question.model.version}: the maps of {question.layer.name}"

    def _notes(self) -> str:
        atlas, state = self._atlas, self._atlas.state
        skipped = f", {len(state.skipped)} skipped" if state.skipped else ""
        lines = [
            f"Each map has the {'nine ' if state.photos >= 9 else ''}photos in which it has the strongest unit, ranked "
            f"by {escape(atlas.by)}, among {state.photos:,} photos{skipped}; computed in "
            f"{escape(', '.join(state.computed))}.",
            f"{len(atlas.dead)} dead maps. {len(atlas.duplicates)} pairs of near-duplicates.",
        ]
        if atlas.projections:
            lines.append(
                f"All projections share one scale (±{self.scale:.3g} in the normalised input is black or white, and "
                "mid-grey is 0), so a pale projection belongs to a weak map."
            )
        else:
            lines.append("There are no projections: this network, or this server, cannot make them.")
        return "".join(f"<p>{line}</p>" for line in lines)

    def _figure(self, index: int, side: int) -> str:
        kinds = [*(["dead"] if index in self._atlas.dead else []), *(["twin"] if self._atlas.partners(index) else [])]
        units = self._atlas.strongest.units(index)
        pictures = "".join(
            f'<img alt="{word}, map {index}" width="{block.width}" height="{block.height}" src="{_jpeg_url(block)}">'
            for word, block in self._blocks(index, side)
        )
        rows = "".join(f"<li>{unit.value:.4g} {escape(unit.photo)} ({unit.row}, {unit.column})</li>" for unit in units)
        return (
            f'<figure id="map{index}" class="{" ".join(kinds)}" data-map="{index}" '
            f'data-value="{units[0].value if units else 0}"><div>{pictures}</div>'
            f"<figcaption><b>map {index}</b> {escape(self._words(index))}"
            f"<details><summary>photos</summary><ol>{rows}</ol></details></figcaption></figure>\n"
        )

    def _words(self, index: int) -> str:
        units = self._atlas.strongest.units(index)
        words = [f"{units[0].value:.3g} to {units[-1].value:.3g}" if units else "never above 0"]
        if index in self._atlas.dead:
            words.append("dead")
        if partners := self._atlas.partners(index):
            words.append("like " + ", ".join(map(str, partners[:4])))
        return "; ".join(words)

    def _sheet(self, maps: Sequence[int]) -> Image.Image:
        tiles = [
            sheets.Tile(
                tuple(block for _, block in self._blocks(index, SHEET_PIXELS)), f"map {index}: {self._words(index)}"
            )
            for index in maps
        ]
        side = ACROSS * (SHEET_PIXELS + GAP) - GAP
        title = (
            f"{self._title()}, {maps[0]} to {maps[-1]}, ranked by {self._atlas.by}, {self._atlas.state.photos:,} photos"
        )
        return contact_sheet(tiles, SHEET_COLUMNS, title, picture_side=side)

    def _blocks(self, index: int, side: int) -> list[tuple[str, Image.Image]]:
        """Returns the projections of a map in three rows, and the patches in three rows."""
        tiles = [Tile(index, rank, unit) for rank, unit in enumerate(self._atlas.strongest.units(index))]
        blocks = []
        if self._atlas.projections:
            blocks.append(("projections", self._block([self._projection(tile) for tile in tiles], side)))
        if self._atlas.patches:
            blocks.append(("patches", self._block([self._patch(tile) for tile in tiles], side)))
        return blocks

    def _block(self, pictures: Sequence[Image.Image], side: int) -> Image.Image:
        """Draws pictures with one magnification, that of a whole receptive field."""
        layer = self._atlas.question.layer
        largest = max([max(picture.size) for picture in pictures], default=1)
        field = max(1, min(max(layer.receptive_field, layer.receptive_field_width), largest))
        length = ACROSS * (side + GAP) - GAP
        block = Image.new("RGB", (length, length), SLOT_COLOUR)
        for place, picture in enumerate(pictures):
            size = (max(1, round(picture.width * side / field)), max(1, round(picture.height * side / field)))
            how = Image.Resampling.NEAREST if side >= 4 * field else Image.Resampling.LANCZOS
            scaled = picture.resize(size, how)
            row, column = divmod(place, ACROSS)
            at = (column * (side + GAP) + (side - size[0]) // 2, row * (side + GAP) + (side - size[1]) // 2)
            block.paste(scaled, at)
        return block

    def _projection(self, tile: Tile) -> Image.Image:
        return read_projection(self._run, tile).on_scale(self.scale)

    def _patch(self, tile: Tile) -> Image.Image:
        with Image.open(self._run.folder / tile.patch) as picture:
            return picture.convert("RGB")

    def _common_scale(self) -> float:
        strongest = self._atlas.strongest
        peaks = [
            read_projection(self._run, Tile(index, rank, unit)).peak
            for index in strongest.maps
            if index not in self._atlas.dead
            for rank, unit in enumerate(strongest.units(index))
        ]
        return float(np.percentile(peaks, SCALE_PERCENTILE)) if peaks else 0.0


def _jpeg_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
