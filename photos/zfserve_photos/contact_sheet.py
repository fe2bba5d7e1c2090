"""Draws contact sheets: many small pictures with captions on one sheet.

The command line shows projections beside the parts of the photo that caused them. The model room shows the filters of a
first layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from zfserve_photos.text import BACKGROUND, CAPTION_COLOUR, CAPTION_SIZE, TITLE_COLOUR, TITLE_SIZE, draw_text

SLOT_COLOUR = (238, 238, 235)
"""A picture that is smaller than the largest one has this colour around it."""

# Sizes, in pixels.
MARGIN = 24
TILE_GAP = 20
PICTURE_GAP = 4
CAPTION_GAP = 6

CRISP_MAGNIFICATION = 4
"""Each pixel becomes a square of whole pixels at this magnification and above. Below it, scaling is smooth."""


@dataclass(frozen=True)
class Tile:
    """Holds pictures that are drawn side by side, such as a projection and its patch, above a caption.

    Attributes:
        pictures: the pictures, at least one, of any mode and size.
        caption: the text, of any number of lines.
    """

    pictures: tuple[Image.Image, ...]
    caption: str = ""


def contact_sheet(
    tiles: Sequence[Tile], columns: int, title: str = "", picture_side: int = 160, gap: int = TILE_GAP
) -> Image.Image:
    """Draws `tiles` in rows of `columns`. All pictures have the same magnification.

    Args:
        tiles: the tiles, at least one.
        columns: the number of tiles in a row, at least 1. Fewer tiles make a narrower sheet.
        title: the text above the tiles.
        picture_side: the longest side of the largest picture on the sheet, in pixels. It can be up to a fifth shorter
            if whole multiples of a tiny picture do not fill it.
        gap: the distance between neighbouring tiles, in pixels.

    Returns:
        The sheet, in mode RGB.

    Raises:
        ValueError: there is no column, no tile, or a tile without a picture.
    """
    if columns < 1 or not tiles or not all(tile.pictures for tile in tiles):
        raise ValueError("a contact sheet needs at least one column and one tile, and a picture in every tile")
    pictures = [picture for tile in tiles for picture in tile.pictures]
    magnification = picture_side / max(max(picture.size) for picture in pictures)
    if magnification >= CRISP_MAGNIFICATION:
        magnification = int(magnification)
    slot = (
        round(magnification * max(picture.width for picture in pictures)),
        round(magnification * max(picture.height for picture in pictures)),
    )
    cells = [_cell(tile, magnification, slot) for tile in tiles]
    width, height = max(cell.width for cell in cells) + gap, max(cell.height for cell in cells) + gap
    heading = draw_text(title, TITLE_SIZE, TITLE_COLOUR)
    top = MARGIN + (heading.height + TILE_GAP if title else 0)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet_width = max(columns * width - gap, heading.width) + 2 * MARGIN
    sheet = Image.new("RGB", (sheet_width, top + rows * height - gap + MARGIN), BACKGROUND)
    sheet.paste(heading, (MARGIN, MARGIN))
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (MARGIN + column * width, top + row * height))
    return sheet


def _cell(tile: Tile, magnification: float, slot: tuple[int, int]) -> Image.Image:
    """Draws one tile: each picture in the middle of a slot of the same size, and the caption below."""
    caption = draw_text(tile.caption, CAPTION_SIZE, CAPTION_COLOUR)
    step = slot[0] + PICTURE_GAP
    height = slot[1] + (CAPTION_GAP + caption.height if tile.caption else 0)
    cell = Image.new("RGB", (max(len(tile.pictures) * step - PICTURE_GAP, caption.width), height), BACKGROUND)
    for place, picture in enumerate(tile.pictures):
        size = (max(round(picture.width * magnification), 1), max(round(picture.height * magnification), 1))
        smooth = magnification < CRISP_MAGNIFICATION
        scaled = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
        cell.paste(SLOT_COLOUR, (place * step, 0, place * step + slot[0], slot[1]))
        cell.paste(scaled, (place * step + (slot[0] - size[0]) // 2, (slot[1] - size[1]) // 2))
    cell.paste(caption, (0, slot[1] + CAPTION_GAP))
    return cell
