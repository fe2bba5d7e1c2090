"""Tests that a file is refused if it is not an image, is damaged, or is too large."""

import random
import zlib

import pytest
from fakes.image_files import (
    BITS,
    COMPRESSION,
    FORMATS,
    LIMITS,
    TILE_BYTES,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    encode,
    png_file,
    scene,
    spec,
    squashed,
    tiff_file,
)
from PIL import Image
from zfserve_engines.images.codec import MAX_JPEG_SCANS
from zfserve_engines.images.input_image import ImageLimits, decode_image
from zfserve_runtime.errors import ImageTooLarge, ImageUndecodable, ServiceError


def assert_refused(data: bytes, error: type[ServiceError], limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(error) as caught:
        decode_image(data, spec(), limits)
    assert type(caught.value) is error
    assert caught.value.field == "image.encoded"
    return caught.value.message


def test_empty() -> None:
    assert "empty" in assert_refused(b"", ImageUndecodable)


@pytest.mark.parametrize("data", [b"\0", b"hello, I am a photo", b"<svg></svg>", b"%PDF-1.7", b"\0\0\1\0", b"RIFF"])
def test_not_an_image(data: bytes) -> None:
    assert "not a JPEG" in assert_refused(data, ImageUndecodable)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", FORMATS)
def test_truncated(kind: str, share: float) -> None:
    data = encode(scene(160, 120), kind)
    message = assert_refused(data[: int(len(data) * share)], ImageUndecodable)
    assert "complete file" in message


def test_a_truncated_progressive_jpeg() -> None:
    data = encode(scene(160, 120), "JPEG", progressive=True)
    assert_refused(data[: len(data) * 3 // 4], ImageUndecodable)


@pytest.mark.parametrize("sides", [(60_000, 60_000), (8_000_001, 1), (1, 70_000)])
def test_a_bomb_is_refused_by_its_header(sides: tuple[int, int]) -> None:
    # The file has no pixels. If the decoder had read them, the error would say that the file is damaged.
    assert "pixels" in assert_refused(png_file(*sides, rows=b""), ImageTooLarge)


@pytest.mark.parametrize("kind", FORMATS)
def test_too_many_pixels(kind: str) -> None:
    data = encode(Image.new("RGB", (101, 100)), kind)
    limits = ImageLimits(max_bytes=1_000_000, max_pixels=10_000)
    assert "101 x 100" in assert_refused(data, ImageTooLarge, limits)


def test_too_many_bytes() -> None:
    data = encode(Image.new("RGB", (9, 9)), "BMP")
    assert "1,000" in assert_refused(data + b"\0" * 1000, ImageTooLarge, ImageLimits(max_bytes=1000))


def test_a_tiff_of_small_size_with_huge_tiles() -> None:
    tile = zlib.compress(bytes(4096 * 4096))
    tags = {BITS: 8, COMPRESSION: 8, TILE_WIDTH: 4096, TILE_HEIGHT: 4096, TILE_OFFSETS: 8, TILE_BYTES: len(tile)}
    assert_refused(tiff_file("<", tags, tile), ImageTooLarge)
    assert decode_image(tiff_file("<", tags, tile), spec(side=4), ImageLimits()).pixels.shape == (4, 4, 3)


def test_a_progressive_jpeg_of_countless_scans() -> None:
    data = encode(scene(32, 32), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    assert squashed(data[:-2] + last_scan + data[-2:]).any()
    assert "scans" in assert_refused(data[:-2] + last_scan * MAX_JPEG_SCANS + data[-2:], ImageTooLarge)


def test_a_png_without_width() -> None:
    assert_refused(png_file(0, 5, rows=b""), ImageUndecodable)


def test_mutated_files_raise_only_service_errors() -> None:
    chance = random.Random(7)
    seeds = [encode(scene(24, 18), kind) for kind in FORMATS]
    seeds += [encode(scene(24, 18).convert("P"), "PNG"), encode(scene(24, 18), "TIFF", compression="tiff_lzw")]
    seeds += [encode(scene(24, 18), "JPEG", progressive=True), encode(scene(24, 18).convert("CMYK"), "JPEG")]
    limits = ImageLimits(max_bytes=100_000, max_pixels=100_000)
    errors: list[ServiceError] = []
    for turn in range(500):
        try:
            image = decode_image(mutate(seeds[turn % len(seeds)], chance), spec(side=8), limits)
        except ServiceError as error:
            errors.append(error)
        else:
            assert image.pixels.shape == (8, 8, 3)
    assert {error.field for error in errors} == {"image.encoded"}
    # Some damage is harmless. If no file or every file were refused, this test would check nothing.
    assert 100 < len(errors) < 450


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Returns a file with a few bytes changed or removed. Half of the damage is in the header."""
    mutated = bytearray(data)
    for _ in range(chance.choice((1, 3, 12))):
        place = chance.randrange(len(mutated) if chance.random() < 0.5 else min(len(mutated), 60))
        if chance.random() < 0.8:
            mutated[place] = chance.randrange(256)
        else:
            del mutated[place : place + chance.randrange(1, 9)]
    return bytes(mutated)
