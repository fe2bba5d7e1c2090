"""Projections and filters are drawn as pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from zfserve_model.networks import Network, NetworkSpec
from zfserve_model.render import render_filters, render_projection


def rendered(pixels: Tensor) -> list[object]:
    """Returns the picture's values, (height, width, RGB)."""
    values: list[object] = np.asarray(render_projection(pixels)).tolist()
    return values


def test_zero_is_mid_grey_and_the_extremes_reach_the_ends() -> None:
    pixels = torch.tensor([[[0.0, 2.0]], [[-2.0, 1.0]], [[-1.0, 0.0]]])
    assert rendered(pixels) == [[[128, 1, 64], [255, 192, 128]]]


def test_all_channels_share_one_scale() -> None:
    pixels = torch.zeros(3, 2, 2)
    pixels[0], pixels[2] = 4.0, 1.0
    assert rendered(pixels)[0] == [[255, 128, 160], [255, 128, 160]]


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1.0, 1e6])
def test_only_proportions_matter(factor: float) -> None:
    pixels = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(1))
    assert rendered(factor * pixels) == rendered(pixels)


def test_a_few_outliers_do_not_grey_out_the_rest() -> None:
    pixels = torch.ones(3, 20, 20)
    pixels[:, 3, 7] = 1000.0
    assert rendered(pixels)[0][0] == [255, 255, 255]  # type: ignore[index]


def test_one_lit_pixel_in_a_dark_projection_is_shown() -> None:
    pixels = torch.zeros(3, 50, 50)
    pixels[1, 4, 6] = -3.0
    picture = render_projection(pixels)
    assert picture.getpixel((6, 4)) == (128, 1, 128)
    assert picture.getpixel((0, 0)) == (128, 128, 128)


def test_nothing_at_all_is_mid_grey() -> None:
    assert render_projection(torch.zeros(3, 4, 5)).getcolors() == [(20, (128, 128, 128))]


def test_the_picture_has_the_size_of_the_window() -> None:
    picture = render_projection(torch.randn(3, 5, 8))
    assert (picture.mode, picture.size) == ("RGB", (8, 5))


def test_every_filter_is_on_the_sheet() -> None:
    network = Network(NetworkSpec("alexnet", 2, 1))
    weight = network.trunk.get_submodule("conv1").get_parameter("weight")
    with torch.no_grad():
        weight.zero_()
        weight[:, 0] = torch.linspace(-1, 1, 96)[
            :, None, None
        ].sign()  # half of the filters are red, half are its opposite
    sheet: Image.Image = render_filters(network)
    colours = {colour: count for count, colour in sheet.getcolors(maxcolors=1 << 16) or []}
    assert colours[(255, 128, 128)] == colours[(1, 128, 128)] == 48 * (9 * 11) ** 2
