"""A square covers the right pixels with the right fill."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_server.studies.occluder import Occluder, make_fill

PHOTO = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def test_by_default_the_fill_is_mid_grey() -> None:
    assert (make_fill(PHOTO, pb.OccludeRequest()) == 128).all()


def test_a_colour_fills_the_square() -> None:
    fill = make_fill(PHOTO, pb.OccludeRequest(colour=pb.Colour(red=1, green=2, blue=255)))
    assert fill.shape == PHOTO.shape
    assert (fill == [1, 2, 255]).all()


def test_black_is_a_colour() -> None:
    assert not make_fill(PHOTO, pb.OccludeRequest(colour=pb.Colour())).any()


def test_the_mean_is_that_of_each_channel() -> None:
    fill = make_fill(PHOTO, pb.OccludeRequest(photo_mean=pb.PhotoMean()))
    assert fill[0, 0].tolist() == [round(PHOTO[..., channel].mean()) for channel in range(3)]
    assert (fill == fill[0, 0]).all()


@pytest.mark.parametrize(("asked", "sigma"), [(0, 10), (2.5, 2.5)])
def test_the_blur_is_pillows(asked: float, sigma: float) -> None:
    fill = make_fill(PHOTO, pb.OccludeRequest(blur=pb.Blur(sigma=asked)))
    expected = Image.fromarray(PHOTO).filter(ImageFilter.GaussianBlur(sigma))
    assert np.array_equal(fill, np.asarray(expected))


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=5))
def test_only_the_square_changes(size: int, wanted: list[tuple[int, int]]) -> None:
    corners = [(min(top, 6 - size), min(left, 9 - size)) for top, left in wanted]
    fill = 255 - PHOTO
    covered = Occluder(PHOTO, fill, size).cover(np.array(corners))
    for image, (top, left) in zip(covered, corners, strict=True):
        inside = np.zeros((6, 9), bool)
        inside[top : top + size, left : left + size] = True
        assert np.array_equal(image[inside], fill[inside])
        assert np.array_equal(image[~inside], PHOTO[~inside])
