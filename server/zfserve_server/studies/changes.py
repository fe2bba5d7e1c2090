"""Changes the input of a network: moves, scales, turns, flips or recolours it. `transformation` uses it.

Every change is made around the centre of the input. The change that leaves the input as it is returns the same pixels,
bit for bit, because each step of a sweep is compared with the untouched photo.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from zfserve_protos.v1 import zfserve_pb2 as pb

Pixels = npt.NDArray[np.uint8]

_SUPPORT = 3
"""The number of pixels beyond the first and the last one that a resampling filter may read. Bicubic reads 2."""

_HUES = 256
"""The number of hues that Pillow tells apart. A hue is exact to 0.7 degrees."""

_FILTERS = {
    pb.RESAMPLING_BILINEAR: Image.Resampling.BILINEAR,
    pb.RESAMPLING_NEAREST: Image.Resampling.NEAREST,
    pb.RESAMPLING_BICUBIC: Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Affine:
    """Maps a pixel of the changed image to the photo. Both are seen from the centre, rows downwards.

    With u = x - right and v = y - down, a point (x, y) shows the point (xx * u + xy * v, yx * u + yy * v) of the photo.
    """

    xx: float = 1.0
    xy: float = 0.0
    yx: float = 0.0
    yy: float = 1.0
    right: float = 0.0
    down: float = 0.0

    def coefficients(self, width: int, height: int) -> tuple[float, float, float, float, float, float]:
        """Returns (a, b, c, d, e, f): the pixel (x, y), counted from the top left, shows (ax + by + c, dx + ey + f)."""
        across, along = width / 2 + self.right, height / 2 + self.down
        return (
            *(self.xx, self.xy, width / 2 - self.xx * across - self.xy * along),
            *(self.yx, self.yy, height / 2 - self.yx * across - self.yy * along),
        )


def change(
    pixels: Pixels,
    kind: pb.TransformKind.ValueType,
    step: float,
    border: pb.Border.ValueType,
    resampling: pb.Resampling.ValueType,
) -> Pixels:
    """Returns the changed image, uint8 (H, W, 3), C-contiguous.

    Args:
        pixels: uint8 (H, W, 3), RGB.
        step: the size of the change in the unit of `kind`, within the limits of `transformation_request`.
        border: fills what the photo does not cover.
        resampling: the filter for places between pixels. It does not average over a photo that is made smaller.
    """
    match kind:
        case pb.TRANSFORM_KIND_HORIZONTAL_FLIP:
            return np.ascontiguousarray(pixels[:, ::-1]) if step else pixels
        case pb.TRANSFORM_KIND_VERTICAL_FLIP:
            return np.ascontiguousarray(pixels[::-1]) if step else pixels
        case pb.TRANSFORM_KIND_HUE:
            return _turn_hue(pixels, step)
        case pb.TRANSFORM_KIND_BRIGHTNESS:
            brightened: Pixels = np.clip(np.rint(np.arange(256) * step), 0, 255).astype(np.uint8)[pixels]
            return brightened
    mapping = _affine(kind, step)
    return pixels if mapping == Affine() else _resample(pixels, mapping, border, resampling)


def _affine(kind: pb.TransformKind.ValueType, step: float) -> Affine:
    match kind:
        case pb.TRANSFORM_KIND_VERTICAL_TRANSLATION:
            return Affine(down=step)
        case pb.TRANSFORM_KIND_HORIZONTAL_TRANSLATION:
            return Affine(right=step)
        case pb.TRANSFORM_KIND_SCALE:
            return Affine(xx=1 / step, yy=1 / step)
    assert kind == pb.TRANSFORM_KIND_ROTATION, kind
    # Rounding makes quarter turns exact: the cosine of 90 degrees is 6e-17 in floating point.
    cosine, sine = (round(function(math.radians(step % 360)), 15) for function in (math.cos, math.sin))
    return Affine(xx=cosine, xy=-sine, yx=sine, yy=cosine)


def _resample(
    pixels: Pixels, mapping: Affine, border: pb.Border.ValueType, resampling: pb.Resampling.ValueType
) -> Pixels:
    """Moves an image by `mapping`. It first extends the photo by its border, so that the filter sees the border too."""
    height, width = pixels.shape[:2]
    a, b, c, d, e, f = mapping.coefficients(width, height)
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    across = [a * x + b * y + c for x, y in corners]
    along = [d * x + e * y + f for x, y in corners]
    left, right = _margins(across, width)
    top, bottom = _margins(along, height)
    extended = Image.fromarray(_extend(pixels, ((top, bottom), (left, right)), border))
    moved = extended.transform(
        (width, height), Image.Transform.AFFINE, (a, b, c + left, d, e, f + top), resample=_FILTERS[resampling]
    )
    return np.asarray(moved)


def _margins(seen: list[float], side: int) -> tuple[int, int]:
    """Returns how many pixels are needed before the first and behind the last pixel of a side."""
    return max(0, math.ceil(-min(seen))) + _SUPPORT, max(0, math.ceil(max(seen) - side)) + _SUPPORT


def _extend(pixels: Pixels, margins: tuple[tuple[int, int], tuple[int, int]], border: pb.Border.ValueType) -> Pixels:
    """Returns the image with `margins` around it, (before, behind) for rows and columns."""
    around = (*margins, (0, 0))
    match border:
        case pb.BORDER_EDGE:
            return np.pad(pixels, around, "edge")
        case pb.BORDER_REFLECT:
            return np.pad(pixels, around, "reflect")
    return np.pad(pixels, around, constant_values=0 if border == pb.BORDER_BLACK else 128)


def _turn_hue(pixels: Pixels, degrees: float) -> Pixels:
    """Turns the hue of every pixel. Saturation and the largest of the three values stay."""
    steps = round(degrees / 360 * _HUES) % _HUES
    if not steps:
        return pixels
    hue, saturation, value = Image.fromarray(pixels).convert("HSV").split()
    turned = hue.point([(entry + steps) % _HUES for entry in range(_HUES)])
    return np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB"))
