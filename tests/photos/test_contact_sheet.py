"""Tests the place of every picture and text on a contact sheet, to the pixel."""

import pytest
from PIL import Image
from zfserve_photos.contact_sheet import (
    CAPTION_GAP,
    MARGIN,
    PICTURE_GAP,
    SLOT_COLOUR,
    TILE_GAP,
    Tile,
    contact_sheet,
)
from zfserve_photos.text import BACKGROUND

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int], width: int = 10, height: int = 10) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_tiles_run_left_to_right_and_top_to_bottom() -> None:
    tiles = [Tile((plain(colour),)) for colour in (RED, GREEN, BLUE)]
    sheet = contact_sheet(tiles, columns=2, picture_side=10)
    step = 10 + TILE_GAP
    assert sheet.size == (2 * MARGIN + 10 + step, 2 * MARGIN + 10 + step)
    assert sheet.getpixel((MARGIN, MARGIN)) == RED
    assert sheet.getpixel((MARGIN + step, MARGIN)) == GREEN
    assert sheet.getpixel((MARGIN, MARGIN + step)) == BLUE
    assert sheet.getpixel((MARGIN + step, MARGIN + step)) == BACKGROUND


def test_pictures_of_a_tile_are_side_by_side() -> None:
    sheet = contact_sheet([Tile((plain(RED), plain(BLUE)))], columns=3, picture_side=10)
    assert sheet.size == (2 * MARGIN + 20 + PICTURE_GAP, 2 * MARGIN + 10)
    row = [sheet.getpixel((MARGIN + x, MARGIN)) for x in range(20 + PICTURE_GAP)]
    assert row == [RED] * 10 + [BACKGROUND] * PICTURE_GAP + [BLUE] * 10


def test_tiny_pictures_become_crisp_squares_of_whole_pixels() -> None:
    chequered = Image.new("RGB", (7, 7))
    chequered.putdata([RED if place % 2 else BLUE for place in range(49)])
    sheet = contact_sheet([Tile((chequered,))], columns=1, picture_side=160)
    assert sheet.size == (2 * MARGIN + 7 * 22, 2 * MARGIN + 7 * 22)  # 22 is the largest whole factor within 160
    for place in range(49):
        left, top = MARGIN + place % 7 * 22, MARGIN + place // 7 * 22
        square = sheet.crop((left, top, left + 22, top + 22))
        assert square.getcolors() == [(22 * 22, RED if place % 2 else BLUE)]


def test_large_pictures_are_reduced_to_fit() -> None:
    assert contact_sheet([Tile((plain(RED, 640, 320),))], 1, picture_side=160).size == (
        2 * MARGIN + 160,
        2 * MARGIN + 80,
    )


def test_all_pictures_have_one_magnification_and_smaller_ones_are_in_the_middle_of_their_slot() -> None:
    sheet = contact_sheet([Tile((plain(RED, 20, 20),)), Tile((plain(GREEN, 10, 20),))], columns=1, picture_side=40)
    top = MARGIN + 40 + TILE_GAP
    row = [sheet.getpixel((MARGIN + x, top)) for x in range(40)]
    assert row == [SLOT_COLOUR] * 10 + [GREEN] * 20 + [SLOT_COLOUR] * 10


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_any_mode_are_drawn(mode: str) -> None:
    white = plain((255, 255, 255)).convert(mode)
    assert contact_sheet([Tile((white,))], 1, picture_side=10).getpixel((MARGIN, MARGIN)) == (255, 255, 255)


def inked_rows(sheet: Image.Image, top: int) -> set[int]:
    """Returns the rows from `top` on that are not blank."""
    return {
        y for y in range(top, sheet.height) if any(sheet.getpixel((x, y)) != BACKGROUND for x in range(sheet.width))
    }


def test_captions_are_below_their_pictures_and_within_the_sheet() -> None:
    top = MARGIN + 10 + CAPTION_GAP
    one = contact_sheet([Tile((plain(RED),), "map 3 · 7.50")], 1, picture_side=10)
    two = contact_sheet([Tile((plain(RED),), "map 3 · 7.50\nrow 1, column 2")], 1, picture_side=10)
    assert min(inked_rows(one, top - CAPTION_GAP)) >= top
    assert len(inked_rows(two, top)) > len(inked_rows(one, top)) > 0
    for sheet in (one, two):
        assert max(inked_rows(sheet, top)) < sheet.height - MARGIN


def test_a_long_caption_or_title_widens_the_sheet() -> None:
    long = "a rather long line of words, longer than its picture is wide"
    short = contact_sheet([Tile((plain(RED),), "short")], 1, "short", picture_side=10)
    for sheet in (
        contact_sheet([Tile((plain(RED),), long)], 1, "short", picture_side=10),
        contact_sheet([Tile((plain(RED),), "short")], 1, long, picture_side=10),
    ):
        assert sheet.width > short.width
        margin = sheet.crop((sheet.width - MARGIN + 1, 0, sheet.width, sheet.height))
        assert margin.getcolors() == [(margin.width * margin.height, BACKGROUND)]


def test_the_title_is_above_the_tiles() -> None:
    tiles = [Tile((plain(RED),))]
    assert contact_sheet(tiles, 1, "conv5", picture_side=10).height > contact_sheet(tiles, 1, picture_side=10).height


@pytest.mark.parametrize(("tiles", "columns"), [([], 3), ([Tile((plain(RED),))], 0), ([Tile(())], 1)])
def test_an_empty_sheet_is_refused(tiles: list[Tile], columns: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet(tiles, columns)
