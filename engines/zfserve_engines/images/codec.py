"""Decodes image files to pixels. It is the only module that calls Pillow's decoders, so it translates their errors.

`zfserve_engines.images.input_image` calls it. Pillow 13 is the only decoder. Measured on 500 x 375 photos, its JPEG
decoder takes 0.72 ms and simplejpeg takes 0.66 ms. But passing simplejpeg's array to Pillow for the resize costs 0.12
ms more. So a second decoder would save no time, and would give other pixels.
"""

import ctypes
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from zfserve_runtime.errors import ImageTooLarge, ImageUndecodable, ServiceError

ENCODED_FIELD = "image.encoded"
"""The field of a request that holds an image file. Errors name it."""

MAX_SIDE = 65_535
"""The longest side of an image, in pixels. It is also the longest side that a JPEG can have. Pillow resizes the
width first, so its intermediate picture has the height of the source. Without this limit, a PNG that is one pixel wide
could need gigabytes."""

MAX_JPEG_SCANS = 100
"""The largest number of scans in a progressive JPEG; an ordinary one has about ten. Each scan costs a pass over the
whole picture, but an empty scan takes only a few bytes of the file. So the limit on bytes does not limit the work."""

# There is one Pillow plugin for each file signature. Image.open is not used, for three reasons. No other format is ever
# parsed. An MPO file from a phone is read as the JPEG that it begins with. And the pixel limit is ours, not Pillow's
# limit for the whole process.
_FORMATS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"BM", BmpImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
)

Box = tuple[float, float, float, float]
"""The edges of a rectangle: left, top, right and bottom, in pixels. They may be fractions."""


@dataclass(frozen=True)
class ImageLimits:
    """Holds the limits of an image. An image beyond them is refused before it is decoded.

    Attributes:
        max_bytes: the largest size of the file, or of the raw pixels, in bytes.
        max_pixels: the largest product of width and height, as the file's header gives them.
    """

    max_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 50_000_000


@dataclass(frozen=True)
class Orientation:
    """Holds the EXIF orientation (TIFF 6.0, tag 274). It says how to mirror and transpose stored pixels to be upright.

    Attributes:
        exif: the tag's value, from 1 (stored upright) to 8.
    """

    exif: int = 1

    @property
    def swaps_sides(self) -> bool:
        """True where the upright picture is as wide as the stored one is high."""
        return self.exif >= 5

    def stored_box(self, box: Box, width: int, height: int) -> Box:
        """Maps `box` from an upright picture of `width` x `height` pixels to the stored picture."""
        left, top, right, bottom = box
        if self.exif in (2, 3, 6, 7):
            left, right = width - right, width - left
        if self.exif in (3, 4, 7, 8):
            top, bottom = height - bottom, height - top
        return (top, left, bottom, right) if self.swaps_sides else (left, top, right, bottom)

    def upright(self, stored: Image.Image) -> Image.Image:
        """Returns the stored picture turned upright."""
        transposition = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }.get(self.exif)
        return stored if transposition is None else stored.transpose(transposition)


@dataclass(frozen=True)
class ImageHeader:
    """Describes an image file that is within its limits.

    Attributes:
        file: the open file; its pixels may not be decoded yet.
        orientation: the orientation of its stored pixels.
        width: the width of the upright picture, in pixels.
        height: the height of the upright picture, in pixels.
    """

    file: ImageFile.ImageFile
    orientation: Orientation
    width: int
    height: int


def silence_decoders() -> None:
    """Stops the decoders from writing about damaged files to the log and to standard error. A client could fill both.

    It changes the whole process, so only processes that serve, and the fuzzer, call it. Damage that matters is raised
    as an error anyway.
    """
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # libtiff writes to standard error itself, and Pillow has no switch for that. The library that links libtiff gives
    # access to its functions.
    libtiff = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if hasattr(libtiff, name):  # Pillow may be built without libtiff
            getattr(libtiff, name)(None)


def read_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Checks an image file against `limits` by its header alone, and reads its orientation.

    Raises:
        ImageTooLarge: the file has more bytes, pixels, pixels along one side, or scans than the limits allow.
        ImageUndecodable: the file is empty, damaged, or of another format.
    """
    check_bytes(len(data), limits, ENCODED_FIELD)
    if not data:
        raise ImageUndecodable("the image is empty; send the bytes of an image file", field=ENCODED_FIELD)
    plugin = _plugin(data)
    with _translated_errors():
        file = plugin(io.BytesIO(data))
        check_size(file.width, file.height, limits, ENCODED_FIELD)
        if isinstance(file, JpegImageFile) and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
            raise ImageTooLarge(
                f"the JPEG has more than {MAX_JPEG_SCANS} scans; save it again with an ordinary encoder",
                field=ENCODED_FIELD,
            )
        if isinstance(file, TiffImageFile) and TILEWIDTH in file.tag_v2:
            check_size(file.tag_v2[TILEWIDTH], file.tag_v2.get(TILELENGTH, 1), limits, ENCODED_FIELD)
        if not isinstance(file, JpegImageFile):
            # A PNG may store its orientation after the pixels, and Pillow turns a TIFF upright itself.
            file.load()
    orientation = _orientation(file)
    width, height = (file.height, file.width) if orientation.swaps_sides else file.size
    return ImageHeader(file, orientation, width, height)


def decode_rgb(header: ImageHeader, least_width: int, least_height: int) -> tuple[Image.Image, float]:
    """Returns the stored pixels in mode RGB, not turned upright, and the factor by which each side was reduced.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the result still has at least `least_width` x `least_height`
    stored pixels. Its decoder then skips most of the inverse transform.

    Raises:
        ImageUndecodable: the file is damaged, cut short, or has 32-bit samples, which have no agreed meaning.
        ImageTooLarge: the picture does not fit in memory.
    """
    with _translated_errors():
        file = header.file
        width = file.width
        drafted = file.draft(file.mode, (least_width, least_height)) if isinstance(file, JpegImageFile) else None
        file.load()
        return _to_rgb(file), width / drafted[1][2] if drafted else 1.0


def check_bytes(count: int, limits: ImageLimits, field: str) -> None:
    """Raises ImageTooLarge where an image has more than `limits.max_bytes` bytes."""
    if count > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {count:,} bytes and the limit is {limits.max_bytes:,}; send a smaller one", field=field
        )


def check_size(width: int, height: int, limits: ImageLimits, field: str) -> None:
    """Raises ImageTooLarge where the picture exceeds a limit, and ImageUndecodable where a side is zero."""
    if width < 1 or height < 1:
        raise ImageUndecodable(f"the image is {width} x {height} pixels; send one of at least 1 x 1", field=field)
    if max(width, height) > MAX_SIDE or width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image is {width} x {height} pixels and the limit is {limits.max_pixels:,} pixels, and {MAX_SIDE:,} "
            "along each side; send a smaller one",
            field=field,
        )


def _plugin(data: bytes) -> type[ImageFile.ImageFile]:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    for signature, plugin in _FORMATS:
        if data.startswith(signature):
            return plugin
    raise ImageUndecodable(
        "the image is not a JPEG, PNG, WebP, BMP, TIFF or GIF file; convert it to one", field=ENCODED_FIELD
    )


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translates Pillow's errors in the block to errors of this service."""
    try:
        yield
    except ServiceError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageTooLarge("the image does not fit in memory; send a smaller one", field=ENCODED_FIELD) from error
    except Exception as error:
        # Damaged files make Pillow raise almost any error: OSError, SyntaxError, struct.error, KeyError, TypeError...
        raise ImageUndecodable(
            "the image cannot be decoded; it is damaged or cut short, send the complete file", field=ENCODED_FIELD
        ) from error


def _orientation(file: ImageFile.ImageFile) -> Orientation:
    try:
        exif = file.getexif().get(ExifTag.Orientation, 1)
    except Exception:
        # A picture with broken metadata can still be decoded.
        return Orientation()
    return Orientation(exif) if exif in range(1, 9) else Orientation()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture to mode RGB. Puts transparent pixels on white, as viewers do. Keeps the upper 8 of 16 bits."""
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode in ("I", "F"):
        raise ImageUndecodable(
            "the image has 32-bit samples; convert it to 8 or 16 bits a channel", field=ENCODED_FIELD
        )
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(rgba, mask=rgba)
    return page


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Converts 16-bit grey to 8-bit grey. Pillow's own conversion clips every value above 255 to white."""
    samples = np.asarray(image)
    grey = Image.fromarray((samples >> 8).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(samples == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
