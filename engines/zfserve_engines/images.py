"""A photo as the network wants it: decoded, upright, RGB, resized by the bundle's rule.

Called by the server for every request and by the exporter for calibration, parity and accuracy, so that what is
measured is what is served. `zfserve_engines.image_codec` decodes; this module knows the geometry.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from zfserve_runtime.bundle import InputSpec
from zfserve_runtime.errors import ImageTooLarge, InvalidInput

from zfserve_engines.image_codec import Box, ImageLimits, check_bytes, check_size, decode_rgb, read_header

__all__ = ["ImageLimits", "InputImage", "decode_image", "resize_raw"]

RAW_FIELD = "image.raw"

OVERSAMPLING = 2
"""A large JPEG is decoded at a fraction of its size while at least this many of its pixels remain for each of the
input's, in both directions, so that the resize still averages. Against full decoding the input then differs by less
than 1 of 255 on average (0.2 to 0.7 measured, 17 at the worst pixel), for half the time or less."""


@dataclass(frozen=True, eq=False)
class InputImage:
    """One photo, ready for the network.

    Attributes:
        pixels: uint8 (H, W, 3), RGB, C-contiguous, possibly read-only.
        source_width, source_height: size of the photo as it was sent, upright.
        region: the part of that photo that `pixels` covers: all of it for `squash`, the centre for `crop`.
    """

    pixels: npt.NDArray[np.uint8]
    source_width: int
    source_height: int
    region: Box

    def source_box(self, left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
        """Map a box of `pixels` to the upright photo, outwards to whole pixels of it and cut off at its edges."""
        height, width = self.pixels.shape[:2]
        across = (self.region[2] - self.region[0]) / width
        down = (self.region[3] - self.region[1]) / height
        source_left, source_right = _whole(self.region[0], across, left, right, self.source_width)
        source_top, source_bottom = _whole(self.region[1], down, top, bottom, self.source_height)
        return source_left, source_top, source_right, source_bottom


def decode_image(data: bytes, spec: InputSpec, limits: ImageLimits) -> InputImage:
    """Decode a JPEG, PNG, WebP, BMP, TIFF or GIF file (of several frames, the first) and resize it.

    Raises:
        ImageTooLarge: past a limit; found before anything is decoded.
        ImageUndecodable: empty, of another format, damaged or cut short.
    """
    header = read_header(data, limits)
    region = input_region(header.width, header.height, spec)
    stored = header.orientation.stored_box(region, header.width, header.height)
    width, height = (spec.height, spec.width) if header.orientation.swaps_sides else (spec.width, spec.height)
    image, reduction = decode_rgb(
        header,
        least_width=math.ceil(OVERSAMPLING * width * header.file.width / (stored[2] - stored[0])),
        least_height=math.ceil(OVERSAMPLING * height * header.file.height / (stored[3] - stored[1])),
    )
    left, top, right, bottom = (side / reduction for side in stored)
    resized = _resize(image, width, height, (left, top, right, bottom))
    pixels = np.ascontiguousarray(header.orientation.upright(resized))
    return InputImage(pixels, header.width, header.height, region)


def resize_raw(data: bytes, width: int, height: int, spec: InputSpec, limits: ImageLimits) -> InputImage:
    """Resize pixels that are already decoded: uint8 (height, width, 3), RGB, row by row.

    Pixels that already have the input's size are taken as they are, under either rule: their sender resized them.

    Raises:
        ImageTooLarge: past a limit.
        InvalidInput: a side is zero, or `data` has another length than the sides say.
    """
    check_bytes(len(data), limits, RAW_FIELD)
    check_size(width, height, limits, RAW_FIELD)
    if len(data) != width * height * 3:
        raise InvalidInput(
            f"{width} x {height} RGB pixels take {width * height * 3:,} bytes and {len(data):,} were sent; "
            "send 3 bytes a pixel, row by row",
            field=RAW_FIELD,
        )
    if (width, height) == (spec.width, spec.height):
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
        return InputImage(pixels, width, height, (0.0, 0.0, width, height))
    region = input_region(width, height, spec)
    try:
        image = Image.frombuffer("RGB", (width, height), data, "raw", "RGB", 0, 1)
        pixels = np.ascontiguousarray(_resize(image, spec.width, spec.height, region))
    except MemoryError as error:
        raise ImageTooLarge("the image does not fit in memory; send a smaller one", field=RAW_FIELD) from error
    return InputImage(pixels, width, height, region)


def input_region(width: int, height: int, spec: InputSpec) -> Box:
    """The part of an upright photo of `width` x `height` that becomes the network's input.

    For `crop` it is where the centre lies once the shorter side has `shorter_side` pixels, rounded as torchvision
    rounds `Resize` and `CenterCrop`.
    """
    if spec.resize == "squash":
        return (0.0, 0.0, width, height)
    shorter = min(width, height)
    scaled_width = int(spec.shorter_side * width / shorter)
    scaled_height = int(spec.shorter_side * height / shorter)
    left = round((scaled_width - spec.width) / 2)
    top = round((scaled_height - spec.height) / 2)
    return (
        left * width / scaled_width,
        top * height / scaled_height,
        min((left + spec.width) * width / scaled_width, width),
        min((top + spec.height) * height / scaled_height, height),
    )


def _resize(image: Image.Image, width: int, height: int, box: Box) -> Image.Image:
    """Bilinear, antialiased. Cutting by `box` gives the pixels of a resize and a crop, and never makes the whole
    scaled picture, which for 30000 x 10 pixels would be 768000 wide."""
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _whole(origin: float, scale: float, first: int, last: int, size: int) -> tuple[int, int]:
    """`first` and `last` mapped to the source and rounded outwards: at least one pixel, within [0, size]."""
    # A billionth of slack, so that a product that should be whole does not spill into the next pixel.
    begin = min(max(math.floor(origin + first * scale + 1e-9), 0), size - 1)
    end = max(min(math.ceil(origin + last * scale - 1e-9), size), begin + 1)
    return begin, end
