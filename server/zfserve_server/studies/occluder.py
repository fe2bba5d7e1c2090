"""Covers an image with a square at many places. `occlusion` uses it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from zfserve_protos.v1 import zfserve_pb2 as pb

Pixels = npt.NDArray[np.uint8]

MID_GREY = pb.Colour(red=128, green=128, blue=128)

DEFAULT_SIGMA = 10.0
"""The standard deviation of a blur in pixels, if the request gives none."""


@dataclass(frozen=True, eq=False)
class Occluder:
    """Covers squares of an image.

    Attributes:
        pixels: the image, uint8 (H, W, 3), RGB.
        fill: what a covered pixel becomes, uint8 (H, W, 3).
        size: the side of the square in pixels.
    """

    pixels: Pixels
    fill: Pixels
    size: int

    def cover(self, corners: npt.NDArray[np.int64]) -> Pixels:
        """Returns a copy of the image for each place, uint8 (N, H, W, 3), with the square there.

        Args:
            corners: int64 (N, 2), the top and the left edge of each square.
        """
        covered = np.repeat(self.pixels[None], len(corners), axis=0)
        for image, (top, left) in zip(covered, corners.tolist(), strict=True):
            square = np.s_[top : top + self.size, left : left + self.size]
            image[square] = self.fill[square]
        return covered


def make_fill(pixels: Pixels, request: pb.OccludeRequest) -> Pixels:
    """Returns the fill that a request asks for, uint8 (H, W, 3). A fill of one colour takes no memory."""
    match request.WhichOneof("fill"):
        case "photo_mean":
            colour = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
        case "blur":
            blur = ImageFilter.GaussianBlur(request.blur.sigma or DEFAULT_SIGMA)
            return np.asarray(Image.fromarray(pixels).filter(blur))
        case chosen:
            asked = request.colour if chosen else MID_GREY
            colour = np.array([asked.red, asked.green, asked.blue], np.uint8)
    return np.broadcast_to(colour, pixels.shape)
