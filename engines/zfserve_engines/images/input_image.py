"""Turns a photo into the input of a network: decodes it, turns it upright, and resizes it by the bundle's rule.

The server calls it for every request. The exporter calls it for calibration, parity and accuracy, so that the photos of
its measurements are prepared as in serving. `zfserve_engines.images.codec` decodes; this module knows the geometry.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from zfserve_runtime.bundle import InputSpec
from zfserve_runtime.errors import ImageTooLarge, InvalidInput

from zfserve_engines.images.codec import Box, ImageLimits, check_bytes, check_size, decode_rgb, read_header

__all__ = ["ImageLimits", "InputImage", "decode_image", "resize_raw"]

RAW_FIELD = "image.raw"
"""The field of a request that holds raw pixels. Errors name it."""

OVERSAMPLING = 2
"""The smallest number of decoded pixels for each pixel of the input, in each direction. A large JPEG is decoded at a
fraction of its size, as long as it keeps this many pixels, so that the resize still averages. That takes half the time
or less. The input then differs from that of full decoding by less than 1 of 255 on average. Measured were 0.2 to 0.7 on
average, and 17 at the worst pixel."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, eq=False)
class InputImage:
    """Holds one photo that is ready for the network.

    Attributes:
        pixels: uint8 (H, W, 3), RGB, C-contiguous. The array may be read-only.
        source_width: the width of the upright photo before the resize, in pixels.
        source_height: the height of the upright photo before the resize, in pixels.
        region: the part of the upright photo that `pixels` covers: all of it for `squash`, its centre for `crop`.
    """

    pixels: npt.NDArray[np.uint8]
    source_width: int
    source_height: int
    region: Box

    def source_box(self, left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
        """Maps a box in `pixels` to the upright photo: left, top, right and bottom, in whole pixels.

        The box is rounded outwards and clipped at the edges of the photo.
        """
        height, width = self.pixels.shape[:2]
        across = (self.region[2] - self.region[0]) / width
        down = (self.region[3] - self.region[1]) / height
        source_left, source_right = _whole(self.region[0], across, left, right, self.source_width)
        source_top, source_bottom = _whole(self.region[1], down, top, bottom, self.source_height)
        return source_left, source_top, source_right, source_bottom


def decode_image(data: bytes, spec: InputSpec, limits: ImageLimits) -> InputImage:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF or GIF file and resizes it. It takes the first of several frames.

    Raises:
        ImageTooLarge: the file exceeds a limit. It is checked before anything is decoded.
        ImageUndecodable: the file is empty, damaged, cut short, or of another format.
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
    resized = _resize(image, (width, height), (left, top, right, bottom), spec)
    pixels = np.ascontiguousarray(header.orientation.upright(resized))
    return InputImage(pixels, header.width, header.height, region)


def resize_raw(data: bytes, width: int, height: int, spec: InputSpec, limits: ImageLimits) -> InputImage:
    """Resizes pixels that are already decoded: uint8 (height, width, 3), RGB, row by row.

    Pixels that already have the size of the input are not changed by either rule, because the caller has resized them.

    Raises:
        ImageTooLarge: the pixels exceed a limit.
        ImageUndecodable: a side is zero.
        InvalidInput: the length of `data` does not fit the sides.
    """
    check_bytes(len(data), limits, RAW_FIELD)
    check_size(width, height, limits, RAW_FIELD)
    if len(data) != width * height * 3:
        raise InvalidInput(
            f"{width} x {height} RGB pixels take {width * height * 3:,} bytes and {len(data):,} were sent; "
            "send 3 bytes for each pixel, row by row",
            field=RAW_FIELD,
        )
    if (width, height) == (spec.width, spec.height):
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
        return InputImage(pixels, width, height, (0.0, 0.0, width, height))
    region = input_region(width, height, spec)
    try:
        image = Image.frombuffer("RGB", (width, height), data, "raw", "RGB", 0, 1)
        pixels = np.ascontiguousarray(_resize(image, (spec.width, spec.height), region, spec))
    except MemoryError as error:
        raise ImageTooLarge("the image does not fit in memory; send a smaller one", field=RAW_FIELD) from error
    return InputImage(pixels, width, height, region)


def input_region(width: int, height: int, spec: InputSpec) -> Box:
    """Returns the part of an upright photo of `width` x `height` pixels that becomes the input of the network.

    The result is in pixels of that photo. For `squash` it is the whole photo. For `crop`, the photo is scaled so that
    its shorter side has `shorter_side` pixels, and the region is the centre of the scaled photo, mapped back. It is
    rounded as torchvision rounds `Resize` and `CenterCrop`.
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


def _resize(image: Image.Image, size: tuple[int, int], box: Box, spec: InputSpec) -> Image.Image:
    """Resizes the part `box` of a picture to `size`, (width, height) in pixels, antialiased.

    The result is the same as that of a resize and a crop. But the whole scaled picture is never made. For a source of
    30000 x 10 pixels it would be 768000 pixels wide.
    """
    return image.resize(size, _FILTERS[spec.interpolation], box=box)


def _whole(origin: float, scale: float, first: int, last: int, size: int) -> tuple[int, int]:
    """Maps the interval `first` to `last` to the source and rounds it outwards.

    The result has at least one pixel, and is within [0, size].
    """
    # The slack of 1e-9 keeps a product that should be a whole number out of the next pixel.
    begin = min(max(math.floor(origin + first * scale + 1e-9), 0), size - 1)
    end = max(min(math.ceil(origin + last * scale - 1e-9), size), begin + 1)
    return begin, end
