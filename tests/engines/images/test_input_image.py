"""Tests the pixels that `decode_image` and `resize_raw` return, and the region of the photo that they cover."""

import io
import struct
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from fakes.image_files import (
    BITS,
    FORMATS,
    LIMITS,
    STRIP_BYTES,
    STRIP_OFFSETS,
    encode,
    png_chunk,
    png_file,
    scene,
    spec,
    squashed,
    tiff_file,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError
from zfserve_engines.images.codec import Orientation
from zfserve_engines.images.input_image import ImageLimits, InputImage, decode_image, input_region, resize_raw
from zfserve_runtime.errors import ImageTooLarge, ImageUndecodable, InvalidInput, ServiceError


def difference(one: npt.ArrayLike, other: npt.ArrayLike | Image.Image) -> npt.NDArray[np.int64]:
    return np.abs(np.asarray(one, np.int64) - np.asarray(other, np.int64))


def one_colour(data: bytes) -> tuple[int, ...]:
    """Decodes an image that has only one colour, and returns that colour."""
    pixels = squashed(data)
    assert (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


# Decoded pixels


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_decoded(kind: str) -> None:
    photo = scene(64, 48)
    decoded = decode_image(encode(photo, kind), spec(side=32), LIMITS)
    expected = photo.resize((32, 32), Image.Resampling.BILINEAR)
    assert decoded.pixels.shape == (32, 32, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert (decoded.source_width, decoded.source_height) == (64, 48)
    # GIF has 256 colours; JPEG and WebP are lossy.
    assert difference(decoded.pixels, expected).mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert difference(squashed(data), np.full((8, 8, 3), (255, 0, 0))).max() <= 2


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("exif", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_honoured(kind: str, exif: int, resize: Literal["squash", "crop"]) -> None:
    metadata = Image.Exif()
    metadata[0x0112] = exif
    data = encode(scene(61, 47), kind, exif=metadata)
    small = spec(resize, side=16, shorter_side=19)
    decoded = decode_image(data, small, LIMITS)
    with Image.open(io.BytesIO(data)) as stored:
        upright = ImageOps.exif_transpose(stored).convert("RGB")
    assert (decoded.source_width, decoded.source_height) == upright.size
    # `decode_image` turns the picture after the resize. So it may differ by the rounding between the passes of the
    # resize.
    expected = decode_image(encode(upright, "PNG"), small, LIMITS).pixels
    assert difference(decoded.pixels, expected).max() <= 1


def test_a_photo_with_broken_exif_is_decoded() -> None:
    assert one_colour(encode(Image.new("RGB", (9, 9), "white"), "JPEG", exif=b"Exif\0\0II*\0\xff")) == (255, 255, 255)


def test_grey_is_spread_over_the_channels() -> None:
    assert one_colour(encode(Image.new("L", (9, 9), 128), "JPEG")) == (128, 128, 128)
    assert one_colour(encode(Image.new("L", (9, 9), 128), "PNG")) == (128, 128, 128)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    assert one_colour(encode(Image.new("1", (9, 9), 1), kind)) == (255, 255, 255)
    assert one_colour(encode(Image.new("1", (9, 9), 0), kind)) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_shows_white_behind_it(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert one_colour(encode(Image.new("RGBA", (9, 9), (0, 0, 255, 0)), kind, **options)) == (255, 255, 255)
    assert one_colour(encode(Image.new("RGBA", (9, 9), (0, 0, 255, 255)), kind, **options)) == (0, 0, 255)
    assert one_colour(encode(Image.new("RGBA", (9, 9), (0, 0, 255, 51)), kind, **options)) == (204, 204, 255)


def test_grey_with_alpha_shows_white_behind_it() -> None:
    assert one_colour(encode(Image.new("LA", (9, 9), (0, 102)), "PNG")) == (153, 153, 153)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_keeps_its_colours_and_its_transparency(kind: str) -> None:
    image = Image.new("P", (9, 9), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert one_colour(encode(image, kind)) == (10, 20, 30)
    assert one_colour(encode(image, kind, transparency=0)) == (255, 255, 255)


def test_a_transparent_colour_of_an_rgb_png_is_honoured() -> None:
    image = Image.new("RGB", (9, 9), (1, 2, 3))
    assert one_colour(encode(image, "PNG", transparency=(1, 2, 3))) == (255, 255, 255)
    assert one_colour(encode(image, "PNG", transparency=(3, 2, 1))) == (1, 2, 3)


def test_cmyk_is_converted_as_adobe_writes_it() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert difference(one_colour(encode(red, "JPEG", quality=100)), (255, 0, 0)).max() <= 2
    assert one_colour(encode(red, "TIFF")) == (255, 0, 0)


@pytest.mark.parametrize("value", [0, 255, 256, 0x8080, 0xFFFF])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str, value: int) -> None:
    image = Image.fromarray(np.full((9, 9), value, np.uint16))
    assert one_colour(encode(image, kind)) == (value >> 8,) * 3


def test_16_bit_grey_of_the_other_byte_order() -> None:
    data = tiff_file(">", {BITS: 16, STRIP_OFFSETS: 8, STRIP_BYTES: 32}, struct.pack(">H", 0x1234) * 16)
    assert one_colour(data) == (0x12, 0x12, 0x12)


def test_a_transparent_value_of_a_16_bit_png_is_honoured() -> None:
    samples = np.full((9, 9), 0x1234, np.uint16)
    plain = encode(Image.fromarray(samples), "PNG")
    # Signature and IHDR take 33 bytes; tRNS follows.
    data = plain[:33] + png_chunk(b"tRNS", struct.pack(">H", 0x1234)) + plain[33:]
    assert one_colour(plain) == (0x12, 0x12, 0x12)
    assert one_colour(data) == (255, 255, 255)


def test_a_16_bit_colour_png_keeps_the_upper_byte() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 0xFFFF, 0x8080, 0x0101) * 9 for _ in range(9))
    assert one_colour(png_file(9, 9, rows, depth=16)) == (0xFF, 0x80, 0x01)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_samples_are_refused(mode: str) -> None:
    with pytest.raises(ImageUndecodable, match="32-bit"):
        squashed(encode(Image.new(mode, (9, 9), 1), "TIFF"))


# Agreement with plain Pillow


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_photo_equals_a_plain_resize(interpolation: Literal["bilinear", "bicubic"]) -> None:
    rule, data = spec(interpolation=interpolation), encode(scene(500, 375), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        expected = image.resize((224, 224), Image.Resampling[interpolation.upper()])
        raw = resize_raw(image.tobytes(), *image.size, rule, LIMITS).pixels
    assert difference(decode_image(data, rule, LIMITS).pixels, expected).max() == 0
    assert difference(raw, expected).max() == 0


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (256, 256), (231, 640), (90, 60)])
def test_crop_equals_a_resize_and_a_centre_crop(size: tuple[int, int]) -> None:
    photo = scene(*size)
    width, height = (int(256 * side / min(size)) for side in size)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    expected = photo.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    # The box is rounded to float32 on its way into Pillow.
    assert difference(decode_image(encode(photo, "PNG"), spec("crop"), LIMITS).pixels, expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_reduced_decoding_of_a_large_jpeg_agrees_with_full_decoding(
    resize: Literal["squash", "crop"], mode: str
) -> None:
    data = encode(scene(1001, 803).convert(mode), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        full = encode(image.convert("RGB"), "PNG")
    # An input of 80 x 80 allows a reduction to 1/4. The sides of the photo are not multiples of 4.
    small = spec(resize, side=80, shorter_side=92)
    limits = ImageLimits(max_bytes=20_000_000)
    reduced = decode_image(data, small, limits)
    exact = decode_image(full, small, limits)
    assert reduced.region == exact.region
    assert difference(reduced.pixels, exact.pixels).mean() < 1
    assert difference(reduced.pixels, exact.pixels).max() <= 20


# Extreme shapes


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (30_000, 10), (10, 30_000), (2, 1), (65_535, 1), (1, 65_535)])
def test_extreme_shapes(size: tuple[int, int], resize: Literal["squash", "crop"]) -> None:
    image = decode_image(encode(Image.new("RGB", size, (9, 8, 7)), "PNG"), spec(resize), LIMITS)
    assert image.pixels.shape == (224, 224, 3)
    assert (image.pixels == (9, 8, 7)).all()
    left, top, right, bottom = image.source_box(0, 0, 224, 224)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]


# Raw pixels


def test_raw_pixels_of_the_inputs_size_are_not_changed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for resize in ("squash", "crop"):
        image = resize_raw(pixels.tobytes(), 224, 224, spec(resize), LIMITS)
        assert (image.pixels == pixels).all()
        assert image.source_box(10, 20, 30, 40) == (10, 20, 30, 40)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_raw_pixels_are_resized_as_a_file_is(resize: Literal["squash", "crop"]) -> None:
    photo = scene(300, 200)
    raw = resize_raw(photo.tobytes(), 300, 200, spec(resize), LIMITS)
    encoded = decode_image(encode(photo, "PNG"), spec(resize), LIMITS)
    assert (raw.pixels == encoded.pixels).all()
    assert raw.region == encoded.region


@pytest.mark.parametrize(
    ("data", "width", "height", "error"),
    [
        (b"", 0, 0, ImageUndecodable),
        (b"", 0, 4, ImageUndecodable),
        (b"123", 1, 2, InvalidInput),
        (b"1234", 1, 1, InvalidInput),
        (b"", 4_000_000_000, 4_000_000_000, ImageTooLarge),
        (b"", 1, 65_536, ImageTooLarge),
        (bytes(4_000_001), 1, 1, ImageTooLarge),
    ],
)
def test_raw_pixels_that_are_refused(data: bytes, width: int, height: int, error: type[ServiceError]) -> None:
    with pytest.raises(error) as caught:
        resize_raw(data, width, height, spec(), LIMITS)
    assert type(caught.value) is error
    assert caught.value.field == "image.raw"


# Geometry


@st.composite
def placed_images(draw: st.DrawFn) -> InputImage:
    width, height = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))
    side = draw(st.integers(1, 300))
    rule = spec(draw(st.sampled_from(["squash", "crop"])), side, side + draw(st.integers(0, 50)))
    return InputImage(np.zeros((side, side, 3), np.uint8), width, height, input_region(width, height, rule))


@st.composite
def boxes(draw: st.DrawFn, side: int) -> tuple[int, int, int, int]:
    left, top = draw(st.integers(0, side - 1)), draw(st.integers(0, side - 1))
    return left, top, draw(st.integers(left + 1, side)), draw(st.integers(top + 1, side))


@given(placed_images())
def test_the_region_lies_in_the_photo_and_around_its_centre(image: InputImage) -> None:
    left, top, right, bottom = image.region
    assert 0 <= left < right <= image.source_width
    assert 0 <= top < bottom <= image.source_height
    # The region is at most one pixel of the scaled photo away from the centre, because its size and place are rounded.
    scale = max(right - left, bottom - top) / len(image.pixels)
    assert abs((left + right) - image.source_width) <= 2 * scale + 1e-6
    assert abs((top + bottom) - image.source_height) <= 2 * scale + 1e-6


@given(st.data())
def test_a_source_box_lies_in_the_photo_and_covers_what_it_should(data: st.DataObject) -> None:
    image = data.draw(placed_images())
    side = len(image.pixels)
    left, top, right, bottom = data.draw(boxes(side))
    found = image.source_box(left, top, right, bottom)
    assert 0 <= found[0] < found[2] <= image.source_width
    assert 0 <= found[1] < found[3] <= image.source_height
    across = (image.region[2] - image.region[0]) / side
    assert found[0] <= image.region[0] + left * across + 1e-6
    assert found[2] >= image.region[0] + right * across - 1e-6
    assert found[2] - found[0] <= (right - left) * across + 2
    outer = image.source_box(0, 0, side, side)
    assert outer[0] <= found[0]
    assert outer[1] <= found[1]
    assert outer[2] >= found[2]
    assert outer[3] >= found[3]


def test_a_crop_larger_than_the_scaled_photo_is_refused() -> None:
    with pytest.raises(ValidationError, match="shorter_side"):
        spec("crop", side=224, shorter_side=223)
    assert spec("squash", side=224, shorter_side=223).shorter_side == 223


def test_source_boxes_by_hand() -> None:
    squash = InputImage(np.zeros((10, 10, 3), np.uint8), 40, 20, (0, 0, 40, 20))
    assert squash.source_box(1, 1, 2, 3) == (4, 2, 8, 6)
    # 40 x 20 is scaled to 24 x 12. Its central 10 x 10 pixels are columns 7 to 17 and rows 1 to 11.
    region = input_region(40, 20, spec("crop", side=10, shorter_side=12))
    assert region == pytest.approx((7 / 0.6, 1 / 0.6, 17 / 0.6, 11 / 0.6))
    crop = InputImage(np.zeros((10, 10, 3), np.uint8), 40, 20, region)
    assert crop.source_box(0, 0, 10, 10) == (11, 1, 29, 19)
    assert crop.source_box(5, 5, 6, 6) == (20, 10, 22, 12)


@given(st.integers(1, 8), st.data())
def test_the_stored_box_holds_the_pixels_of_the_upright_one(exif: int, data: st.DataObject) -> None:
    stored = Image.fromarray(np.arange(7 * 5, dtype=np.uint8).reshape(5, 7))
    orientation = Orientation(exif)
    upright = orientation.upright(stored)
    left = data.draw(st.integers(0, upright.width - 1))
    top = data.draw(st.integers(0, upright.height - 1))
    box = (left, top, data.draw(st.integers(left + 1, upright.width)), data.draw(st.integers(top + 1, upright.height)))
    found = orientation.stored_box(box, *upright.size)
    cut = stored.crop(tuple(int(side) for side in found))  # type: ignore[arg-type]
    assert orientation.upright(cut).tobytes() == upright.crop(box).tobytes()
