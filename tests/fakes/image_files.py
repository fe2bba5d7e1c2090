"""Makes photos as files: encoded pictures, and PNG and TIFF files built byte by byte."""

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from zfserve_engines.images.input_image import ImageLimits, decode_image
from zfserve_runtime.bundle import InputSpec

LIMITS = ImageLimits(max_bytes=4_000_000, max_pixels=8_000_000)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def spec(
    resize: Literal["squash", "crop"] = "squash",
    side: int = 224,
    shorter_side: int = 256,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> InputSpec:
    return InputSpec(
        height=side,
        width=side,
        resize=resize,
        shorter_side=shorter_side,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=interpolation,
    )


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(width: int, height: int) -> Image.Image:
    """Returns an image like a photo, with gradients, edges and noise. Its quarters differ."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = 0.5 + 0.5 * np.sin(40 * x * y + 9 * x)
    pixels = np.stack([x, y, waves], axis=-1) * 215 + np.random.default_rng(1).normal(0, 5, (height, width, 3)) + 20
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.2, width * 0.5, height * 0.5), fill="red")
    draw.rectangle((width * 0.6, height * 0.55, width * 0.9, height * 0.95), fill="navy", outline="white")
    return image


def squashed(data: bytes, side: int = 8) -> npt.NDArray[np.uint8]:
    return decode_image(data, spec(side=side), LIMITS).pixels


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_file(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BITS, COMPRESSION, STRIP_OFFSETS, STRIP_BYTES = 258, 259, 273, 279
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325


def tiff_file(order: str, tags: dict[int, int], content: bytes) -> bytes:
    """Returns a grey TIFF of 4 x 4 pixels. `order` is "<" or ">", and `content` begins at byte 8."""
    entries = {256: 4, 257: 4, COMPRESSION: 1, 262: 1, 277: 1} | tags
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(content))
    return head + content + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)
