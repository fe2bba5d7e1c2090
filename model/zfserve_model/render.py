"""This module draws projections and filters as pictures.

The worker calls `render_projection`, and `zfserve train` calls `render_filters`.
"""

import torch
from PIL import Image
from torch import Tensor
from zfserve_photos.contact_sheet import Tile, contact_sheet

from zfserve_model.networks import Network

CLIPPED_SHARE = 0.005
"""The share of values that are clipped. A few extreme values would otherwise turn the rest of a projection grey."""
ZERO = 128
FILTER_COLUMNS = 12


def render_projection(pixels: Tensor) -> Image.Image:
    """Draws a projection: zero is mid-grey (128), and one scale for all channels keeps the hues.

    Args:
        pixels: float (3, height, width), RGB.
    """
    strengths = pixels.detach().float().abs().flatten()
    strongest = strengths.sort(descending=True).values
    scale = strongest[int(CLIPPED_SHARE * len(strongest))]
    if scale == 0:  # nearly all values are zero, so the largest one sets the scale
        scale = strongest[0].clamp(min=torch.finfo(torch.float32).tiny)
    levels = ZERO + (ZERO - 1) * (pixels.detach().float() / scale).clamp(-1, 1)
    return Image.fromarray(levels.round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy())


def render_filters(network: Network) -> Image.Image:
    """Draws the filters of the first convolution, conv1 unless it is removed, each on its own scale."""
    name = f"conv{min(network.spec.convolutions)}"
    filters = network.trunk.get_submodule(name).get_parameter("weight")
    tiles = [Tile((render_projection(weight),)) for weight in filters]
    count, _, height, width = filters.shape
    title = f"{name}: {count} filters of {height} x {width} pixels"
    return contact_sheet(tiles, FILTER_COLUMNS, title, picture_side=9 * width, gap=6)
