"""Tests the palette of heatmaps, and overlays pixel by pixel."""

import math
import struct
from itertools import pairwise

import pytest
from PIL import Image
from zfserve_photos.heatmap import DARKEST, LEVELS, PALETTE, ZERO_LEVEL, Colour, heatmap_picture, overlay, srgb_from_lab


def picture_of(*rows: tuple[float, ...]) -> Image.Image:
    values = [value for row in rows for value in row]
    return heatmap_picture(len(rows), len(rows[0]), struct.pack(f"<{len(values)}f", *values))


def lab(colour: Colour) -> tuple[float, float, float]:
    """Converts sRGB to CIELAB under D65."""
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in (channel / 255 for channel in colour)
    )
    x, y, z = (
        (0.4124564 * red + 0.3575761 * green + 0.1804375 * blue) / 0.95047,
        0.2126729 * red + 0.7151522 * green + 0.0721750 * blue,
        (0.0193339 * red + 0.1191920 * green + 0.9503041 * blue) / 1.08883,
    )
    x, y, z = (
        value ** (1 / 3) if value > (6 / 29) ** 3 else value / (3 * (6 / 29) ** 2) + 4 / 29 for value in (x, y, z)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_heatmaps_are_read_row_by_row() -> None:
    picture = picture_of((1.5, -2.0, 0.25), (4.0, 5.0, -6.0))
    assert (picture.mode, picture.size) == ("F", (3, 2))
    assert [picture.getpixel((x, y)) for y in range(2) for x in range(3)] == [1.5, -2.0, 0.25, 4.0, 5.0, -6.0]


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (188, 64, 52), (31, 104, 204), (12, 200, 90)])
def test_lab_becomes_the_colour_that_it_came_from(colour: Colour) -> None:
    assert srgb_from_lab(*lab(colour)) == colour


def test_the_palette_is_perceptually_uniform() -> None:
    places = [lab(colour) for colour in PALETTE[:LEVELS]]
    length = math.dist(places[ZERO_LEVEL], places[-1])
    for level, place in enumerate(places):
        # A colour of eight bits is up to 1 from the place that was meant.
        assert math.dist(place, places[ZERO_LEVEL]) == pytest.approx(length * abs(level / ZERO_LEVEL - 1), abs=1)
    assert max(math.dist(*neighbours) for neighbours in pairwise(places)) < 2


def test_red_and_blue_of_one_strength_are_equally_light() -> None:
    for blue, red in zip(PALETTE[:ZERO_LEVEL], reversed(PALETTE[ZERO_LEVEL + 1 : LEVELS]), strict=True):
        assert lab(blue)[0] == pytest.approx(lab(red)[0], abs=0.5)
        assert blue[2] > blue[0]
        assert red[0] > red[2]


def test_an_overlay_on_white_has_the_colours_of_the_palette() -> None:
    white = Image.new("RGB", (5, 1), "white")
    drawn = overlay(white, picture_of((-9.0, -2.0, 0.0, 2.0, 9.0)), scale=2.0)
    assert [drawn.getpixel((x, 0)) for x in range(5)] == [
        PALETTE[0],
        PALETTE[0],
        PALETTE[ZERO_LEVEL],
        PALETTE[-1],
        PALETTE[-1],
    ]


def test_half_the_scale_is_half_way() -> None:
    drawn = overlay(Image.new("L", (2, 1), 255), picture_of((1.0, -1.0)), scale=2.0)
    assert drawn.getpixel((0, 0)) == PALETTE[ZERO_LEVEL + 64]
    assert drawn.getpixel((1, 0)) == PALETTE[ZERO_LEVEL - 63]


def test_black_is_lightened_and_keeps_the_colour() -> None:
    photo = Image.new("RGB", (200, 1), "black")
    photo.paste("white", (100, 0, 200, 1))
    drawn = overlay(photo, picture_of((2.0,)), scale=2.0)
    expected = tuple(channel * DARKEST for channel in PALETTE[-1])
    assert drawn.getpixel((0, 0)) == pytest.approx(expected, abs=1)
    assert drawn.getpixel((199, 0)) == PALETTE[-1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_photos_of_every_mode_are_drawn_on(mode: str) -> None:
    drawn = overlay(Image.new(mode, (6, 4)), picture_of((1.0, -1.0), (0.0, 0.5)), scale=1.0)
    assert (drawn.mode, drawn.size) == ("RGB", (6, 4))


def test_a_heatmap_without_scale_draws_nothing() -> None:
    drawn = overlay(Image.new("RGB", (2, 2), "white"), picture_of((0.0, 0.0), (0.0, 0.0)), scale=0.0)
    assert drawn.getcolors() == [(4, PALETTE[ZERO_LEVEL])]
