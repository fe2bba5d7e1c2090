"""Draws a signed heatmap over a photo: blue is negative, red is positive, and the photo itself is grey.

The worker draws the overlay of `Explain`, and the command line draws it on the photo and beside a colour scale.
"""

import math

from PIL import Image, ImageChops, ImageOps

LIGHTNESS, CHROMA = 48.0, 60.0
"""The lightness and the chroma of both ends of the palette, in CIELAB. So red and blue of the same strength look
equally strong."""
RED_HUE, BLUE_HUE = math.radians(35), math.radians(285)
NEUTRAL_LIGHTNESS = 94.0
"""The lightness of zero, which has no chroma."""

LEVELS = 255
"""The palette has this many colours. The one in the middle is zero."""
ZERO_LEVEL = LEVELS // 2

DARKEST = 0.55
"""The grey photo is lightened to brightnesses between this and 1, so that its dark parts show colours too."""

Colour = tuple[int, int, int]


def heatmap_picture(height: int, width: int, data: bytes) -> Image.Image:
    """Returns a heatmap as a picture of mode "F".

    Args:
        height: the number of rows.
        width: the number of columns.
        data: float32 (height, width), little endian.
    """
    return Image.frombytes("F", (width, height), data, "raw", "F;32F")


def overlay(photo: Image.Image, heatmap: Image.Image, scale: float) -> Image.Image:
    """Draws `heatmap` over a light, grey copy of `photo`. Each pixel is the colour of the heatmap times the grey.

    Args:
        photo: the photo, of any mode and size.
        heatmap: mode "F", of any size. It is stretched over the whole photo.
        scale: the value of the strongest red; the strongest blue is `-scale`. Values beyond are clipped. With 0 the
            heatmap is not drawn.

    Returns:
        A picture of mode RGB, as large as the photo.
    """
    grey = ImageOps.autocontrast(ImageOps.grayscale(photo), cutoff=1)
    light = grey.point([round(255 * DARKEST + (1 - DARKEST) * brightness) for brightness in range(256)])
    stretched = heatmap.resize(photo.size, Image.Resampling.BICUBIC)
    factor = ZERO_LEVEL / scale if scale > 0 else 0
    # Pillow clips to 0 and 255 when it converts "F" to "L".
    levels = stretched.point(lambda value: value * factor + (ZERO_LEVEL + 0.5)).convert("L")
    colours = levels.convert("P")
    colours.putpalette([channel for colour in PALETTE for channel in colour])
    return ImageChops.multiply(colours.convert("RGB"), light.convert("RGB"))


def _palette() -> list[Colour]:
    arms = [_colour(abs(level) / ZERO_LEVEL, BLUE_HUE if level < 0 else RED_HUE) for level in _levels()]
    return [*arms, arms[-1]]  # level 255 exists, too


def _levels() -> range:
    return range(-ZERO_LEVEL, ZERO_LEVEL + 1)


def _colour(strength: float, hue: float) -> Colour:
    """Returns the colour at `strength` in [0, 1] of the way from neutral to `hue`, linear in CIELAB."""
    lightness = NEUTRAL_LIGHTNESS + strength * (LIGHTNESS - NEUTRAL_LIGHTNESS)
    return srgb_from_lab(lightness, strength * CHROMA * math.cos(hue), strength * CHROMA * math.sin(hue))


def srgb_from_lab(lightness: float, a: float, b: float) -> Colour:
    """Converts CIELAB under D65 to sRGB (IEC 61966-2-1). Colours outside sRGB are clipped."""
    y = (lightness + 16) / 116
    x, z = y + a / 500, y - b / 200
    x, y, z = 0.95047 * _cube(x), _cube(y), 1.08883 * _cube(z)
    return (
        _gamma(3.2404542 * x - 1.5371385 * y - 0.4985314 * z),
        _gamma(-0.9692660 * x + 1.8760108 * y + 0.0415560 * z),
        _gamma(0.0556434 * x - 0.2040259 * y + 1.0572252 * z),
    )


def _cube(root: float) -> float:
    delta = 6 / 29
    return root**3 if root > delta else 3 * delta**2 * (root - 4 / 29)


def _gamma(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


PALETTE: list[Colour] = _palette()
