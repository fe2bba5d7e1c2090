"""Encodes the pictures of the worker's answers as PNG. Used by `projector`."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from zfserve_model.explanation.deconvnet import Window
from zfserve_model.render import render_projection
from zfserve_photos.heatmap import heatmap_picture, overlay

Pixels = npt.NDArray[np.uint8]
"""The network's input: uint8 (height, width, 3), RGB."""

_PNG_COMPRESSION = 1
"""The level of zlib. Measured: its default, 6, takes a third longer for 1 to 5 % fewer bytes."""


def projection_png(projected: Tensor) -> bytes:
    """Draws a projection, float32 (3, height, width)."""
    return _png(render_projection(projected))


def patch_png(pixels: Pixels, window: Window) -> bytes:
    """Cuts the window out of the input."""
    return _png(Image.fromarray(pixels[window.top : window.bottom, window.left : window.right]))


def overlay_png(pixels: Pixels, values: npt.NDArray[np.float32], scale: float) -> bytes:
    """Draws a heatmap over the input.

    Args:
        values: float32 (height, width), of any size. It covers the whole input.
        scale: the value of the strongest colour.
    """
    height, width = values.shape
    heatmap = heatmap_picture(height, width, values.astype("<f4", copy=False).tobytes())
    return _png(overlay(Image.fromarray(pixels), heatmap, scale))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=_PNG_COMPRESSION)
    return buffer.getvalue()
