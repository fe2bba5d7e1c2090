"""Tests the requests that both clients build from their arguments."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from zfserve import ImageReference, InvalidInput, Position
from zfserve.requests import ForClass, classify_request, image_message, project_request

LIMIT = 1_000_000


def test_a_path_sends_the_file_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"whatever")
    assert image_message(file, LIMIT).encoded == b"whatever"
    assert image_message(str(file), LIMIT).encoded == b"whatever"


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bytes_are_a_file(data: Any) -> None:
    assert image_message(data, LIMIT).encoded == b"abc"


def test_an_rgb_image_goes_as_raw_pixels() -> None:
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    raw = image_message(picture, LIMIT).raw
    assert (raw.width, raw.height, raw.data) == (3, 2, bytes((1, 2, 3)) * 6)


def test_an_image_is_turned_upright() -> None:
    picture = Image.new("RGB", (3, 2))
    picture.getexif()[0x0112] = 6  # a quarter turn
    raw = image_message(picture, LIMIT).raw
    assert (raw.width, raw.height) == (2, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_other_modes_keep_their_mode(mode: str) -> None:
    encoded = image_message(Image.new(mode, (3, 2)), LIMIT).encoded
    with Image.open(io.BytesIO(encoded)) as decoded:
        assert (decoded.size, decoded.mode) == ((3, 2), mode)


def test_a_transparent_palette_keeps_its_transparency() -> None:
    picture = Image.new("P", (3, 2))
    picture.info["transparency"] = 0
    with Image.open(io.BytesIO(image_message(picture, LIMIT).encoded)) as decoded:
        assert decoded.mode == "RGBA"


def test_an_array_goes_as_raw_pixels_even_when_it_is_a_view() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    view = pixels[::2, ::-1]
    raw = image_message(view, LIMIT).raw
    assert (raw.width, raw.height, raw.data) == (6, 2, view.tobytes())


def test_an_array_needs_no_numpy() -> None:
    raw = image_message(memoryview(bytes(range(18))).cast("B", (2, 3, 3)), LIMIT).raw
    assert (raw.width, raw.height, raw.data) == (3, 2, bytes(range(18)))


def test_an_object_with_the_array_interface_goes_as_raw_pixels() -> None:
    class Wrapped:
        __array_interface__ = np.full((2, 3, 3), 7, np.uint8).__array_interface__
        kept = np.full((2, 3, 3), 7, np.uint8)

    Wrapped.__array_interface__ = Wrapped.kept.__array_interface__
    assert image_message(Wrapped(), LIMIT).raw.data == bytes([7]) * 18


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((2, 3, 3), np.float32), r"uint8 \(height, width, 3\), RGB; this one is 'f' \(2, 3, 3\)"),
        (np.zeros((2, 3), np.uint8), r"this one is 'B' \(2, 3\)"),
        (np.zeros((3, 2, 4), np.uint8), r"this one is 'B' \(3, 2, 4\)"),
        (17, "int is no image"),
        (None, "NoneType is no image"),
        ("nowhere/photo.jpg", "nowhere/photo.jpg cannot be read: No such file"),
        (bytes(2_000_000), "at most 1,000,000; scale it down"),
        ("a\0b", "cannot be read: embedded null byte"),
        (Image.new("HSV", (4, 4)), "cannot be read: cannot write mode HSV"),
        (np.array(["2026-11-25"], "datetime64[D]"), "cannot be read: "),
    ],
    ids=["float", "grey", "rgba", "number", "none", "no file", "too large", "no path", "odd mode", "dates"],
)
def test_an_object_that_is_no_image_is_refused(image: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        classify_request(image, None, False, LIMIT)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "map.tif"
    with file.open("wb") as opened:
        opened.truncate(2**40)  # a sparse file
    with pytest.raises(InvalidInput, match="takes 1,099,511,627,776 bytes"):
        classify_request(file, None, False, LIMIT)


def test_a_projection_of_the_strongest_maps() -> None:
    request = project_request(ImageReference("r"), "conv3", 4, "strongest", "png", LIMIT)
    assert (request.image.reference, request.layer, request.strongest) == ("r", "conv3", 4)
    assert request.unit.WhichOneof("rule") == "strongest"


def test_a_projection_at_a_place() -> None:
    request = project_request(b"x", "conv3", [5, 1], Position(2, 9), "float32", LIMIT)
    assert list(request.selection.indices) == [5, 1]
    assert (request.unit.position.row, request.unit.position.column) == (2, 9)


def test_a_projection_of_no_maps_is_not_taken_for_the_default() -> None:
    assert project_request(b"x", "conv3", [], "whole", "png", LIMIT).WhichOneof("maps") == "selection"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"maps": -1}, "strongest"),
        ({"maps": [1, -1]}, "selection.indices"),
        ({"maps": ForClass("bee", 0)}, "for_class.count"),
        ({"maps": ForClass("bee", -1)}, "for_class.count"),
        ({"unit": Position(-1, 0)}, "unit.position.row"),
        ({"unit": "weakest"}, "unit"),
        ({"picture_format": "gif"}, "format"),
    ],
    ids=lambda value: str(value),
)
def test_a_value_that_the_message_cannot_hold_is_refused(changes: dict[str, Any], field: str) -> None:
    arguments: dict[str, Any] = {"maps": 9, "unit": "strongest", "picture_format": "png"}
    with pytest.raises(InvalidInput) as caught:
        project_request(b"x", "conv3", max_bytes=LIMIT, **arguments | changes)
    assert caught.value.field == field


def test_a_negative_top_k_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"top_k must be at least 0 and below 2\*\*32, and -1 is not"):
        classify_request(b"x", -1, False, LIMIT)
