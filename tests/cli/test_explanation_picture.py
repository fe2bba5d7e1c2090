"""Tests the layout of the pictures of `zfserve explain`, for photos of many shapes and modes."""

import struct
from pathlib import Path

import pytest
from fakes.pictures import png
from PIL import Image
from zfserve import Box, ClassScore, Explanation, HeatMap, ModelIdentity, Position, Projection
from zfserve_cli.explanation_picture import HALF_WIDTH, WIDTH, explanation_picture, open_photo
from zfserve_cli.explanation_text import probability_text, score_text
from zfserve_photos.contact_sheet import MARGIN, TILE_GAP
from zfserve_photos.heatmap import PALETTE
from zfserve_photos.text import BACKGROUND

BLUE = (40, 80, 160)


def explanation(label: str = "church", box: Box | None = None, value: float = 2.0, **changes: object) -> Explanation:
    """Returns an explanation whose heatmap has one value everywhere. Its scale is 2."""
    values = {
        "for_class": ClassScore(label, "n1", 1, 0.75),
        "served_probability": 0.6875,
        "served_precision": "int8",
        "layer": "conv5",
        "method": "integrated-gradients",
        "heatmap": HeatMap(1, 2, struct.pack("<2f", value, value)),
        "score": 4.0,
        "baseline_score": 1.0,
        "completeness_gap": -0.5,
        "overlay_png": b"",
        "scale": 2.0,
        "source_box": box,
        "model": ModelIdentity("zfnet", "3", "ab12"),
    }
    return Explanation(**(values | changes))  # type: ignore[arg-type]


def drawn(photo: Image.Image, **changes: object) -> Image.Image:
    return explanation_picture(photo, "photo.jpg", explanation(**changes), (), "")  # type: ignore[arg-type]


def first_row_of(picture: Image.Image, colour: tuple[int, int, int], x: int) -> int:
    """Returns the first row that has the colour in column x."""
    return next(y for y in range(picture.height) if picture.getpixel((x, y)) == colour)


def test_photo_and_heatmap_stand_side_by_side_at_the_same_height() -> None:
    picture = drawn(Image.new("RGB", (400, 300), BLUE))
    assert picture.width == WIDTH + 2 * MARGIN
    top = first_row_of(picture, BLUE, MARGIN)
    height = round(HALF_WIDTH * 3 / 4)
    left, right = MARGIN + HALF_WIDTH - 1, MARGIN + HALF_WIDTH + TILE_GAP
    assert picture.getpixel((left, top + height - 1)) == BLUE
    assert picture.getpixel((left + 1, top)) == BACKGROUND
    assert picture.getpixel((left, top + height)) == BACKGROUND
    # A photo of one colour is as dark as a heatmap can be, and the strongest red is red there too.
    red, green, blue = picture.getpixel((right + 10, top + 10))  # type: ignore[misc]
    assert red > 2 * green
    assert red > 2 * blue
    assert picture.getpixel((right, top - 1)) == BACKGROUND


def test_a_wide_photo_stands_above_its_heatmap() -> None:
    picture = drawn(Image.new("RGB", (2000, 500), BLUE))
    top = first_row_of(picture, BLUE, MARGIN)
    assert picture.width == WIDTH + 2 * MARGIN
    assert picture.getpixel((MARGIN + WIDTH - 1, top + WIDTH // 4 - 1)) == BLUE


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (300, 3000), (640, 480)])
def test_photos_of_every_shape_fit_the_page(size: tuple[int, int]) -> None:
    picture = drawn(Image.new("RGB", size, BLUE), box=Box(0, 0, *size))
    assert picture.width == WIDTH + 2 * MARGIN
    assert picture.height < 1000
    assert picture.crop((0, 0, picture.width, MARGIN)).getcolors() == [(picture.width * MARGIN, BACKGROUND)]


def test_the_part_of_the_photo_that_the_network_does_not_see_is_faded() -> None:
    picture = drawn(Image.new("RGB", (430, 430), BLUE), box=Box(0, 215, 430, 430))
    seen = first_row_of(picture, BLUE, MARGIN)
    faded = picture.getpixel((MARGIN, seen - 1))
    assert isinstance(faded, tuple)
    assert min(faded) > 180
    assert picture.getpixel((MARGIN, seen + 214)) == BLUE
    whole = drawn(Image.new("RGB", (430, 430), BLUE), box=Box(0, 0, 430, 430))
    below = (MARGIN, seen + 215, MARGIN + HALF_WIDTH, seen + 240)
    assert picture.crop(below).tobytes() != whole.crop(below).tobytes(), "the caption says what the pale part is"


def test_the_colour_scale_has_the_colours_of_the_heatmap() -> None:
    picture = drawn(Image.new("RGB", (400, 300), BLUE))
    colours = {colour for _, colour in picture.getcolors(maxcolors=1 << 20) or []}
    assert {PALETTE[3], PALETTE[127], PALETTE[250]} <= colours


@pytest.mark.parametrize("label", ["a" * 400, "several words of a label that does not end " * 10, "", "日本"])
def test_long_labels_are_broken_into_lines(label: str) -> None:
    picture = explanation_picture(
        Image.new("RGB", (40, 30)), "name" * 100 + ".jpg", explanation(label), (), "note " * 200
    )
    assert picture.width == WIDTH + 2 * MARGIN


def test_maps_stand_below_with_their_patches() -> None:
    photo = Image.new("RGB", (40, 30), BLUE)
    box = Box(0, 0, 4, 2)
    projection = Projection(
        7,
        Position(0, 0),
        1.0,
        box,
        box,
        png((128, 140, 150)),
        None,
        png((200, 120, 40)),
        ModelIdentity("", "", ""),
        0,
        1,
        attribution=0.5,
    )
    without, with_maps = (
        explanation_picture(photo, "photo.jpg", explanation(), maps, "") for maps in ((), (projection,) * 4)
    )
    colours = {colour for _, colour in with_maps.getcolors(maxcolors=1 << 20) or []}
    assert {(128, 140, 150), (200, 120, 40)} <= colours
    assert with_maps.height > without.height + 200
    assert with_maps.width == without.width


def test_both_probabilities_are_shown_where_they_are_computed_differently() -> None:
    assert probability_text(explanation()) == "68.8% in int8, 75.0% in float32"
    assert probability_text(explanation(served_precision="fp32")) == "75.0%"


def test_the_score_is_the_sum_of_its_parts() -> None:
    assert score_text(explanation()) == ("4.00: baseline 1.00, heatmap +3.50, completeness gap -0.500 (16.7%)")
    assert score_text(explanation(baseline_score=4.0, completeness_gap=0.0)) == (
        "4.00: baseline 4.00, heatmap +0.00, completeness gap +0.000"
    )
    assert score_text(explanation(baseline_score=None, completeness_gap=None)) == "4.00"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_photos_of_every_mode_are_opened(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "photo.tif")
    opened = open_photo(tmp_path / "photo.tif")
    assert (opened.mode, opened.size) == ("RGB", (3, 2))


def test_a_photo_is_opened_upright_on_white_and_with_16_bits(tmp_path: Path) -> None:
    turned = Image.new("RGB", (3, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_photo(tmp_path / "turned.jpg").size == (2, 3)
    Image.new("RGBA", (1, 1), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_photo(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("I;16", (1, 1), 0x8000).save(tmp_path / "deep.png")
    assert open_photo(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
