"""Changes of an image move the right pixels, and the change that does nothing changes no bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_server.studies.changes import Pixels, change
from zfserve_server.studies.transformation_request import DEFAULT_STEPS

PHOTO = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
SQUARE = np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8)
BORDERS = [pb.BORDER_GREY, pb.BORDER_BLACK, pb.BORDER_EDGE, pb.BORDER_REFLECT]
FILTERS = [pb.RESAMPLING_BILINEAR, pb.RESAMPLING_NEAREST, pb.RESAMPLING_BICUBIC]
MODES = {pb.BORDER_EDGE: "edge", pb.BORDER_REFLECT: "reflect"}

NOTHING = {
    pb.TRANSFORM_KIND_SCALE: (1.0,),
    pb.TRANSFORM_KIND_BRIGHTNESS: (1.0,),
    pb.TRANSFORM_KIND_ROTATION: (0.0, 360.0, -720.0),
    pb.TRANSFORM_KIND_HUE: (0.0, 360.0),
}
"""The steps of each kind that change nothing. For all other kinds it is 0."""


def extended(photo: Pixels, border: pb.Border.ValueType, margin: int) -> Pixels:
    """Returns the photo with a border of `margin` pixels on each side."""
    around = ((margin, margin), (margin, margin), (0, 0))
    if border in MODES:
        return np.pad(photo, around, MODES[border])  # type: ignore[call-overload,no-any-return]
    return np.pad(photo, around, constant_values=128 if border == pb.BORDER_GREY else 0)


@pytest.mark.parametrize("kind", DEFAULT_STEPS)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("resampling", FILTERS)
def test_the_step_that_changes_nothing_gives_the_photo_bit_for_bit(
    kind: pb.TransformKind.ValueType, border: pb.Border.ValueType, resampling: pb.Resampling.ValueType
) -> None:
    for step in NOTHING.get(kind, (0.0,)):
        assert np.array_equal(change(PHOTO, kind, step, border, resampling), PHOTO)


@given(st.integers(-10, 10), st.integers(-14, 14), st.sampled_from(BORDERS), st.sampled_from(FILTERS))
def test_a_translation_by_whole_pixels_moves_the_photo_and_its_border(
    down: int, right: int, border: pb.Border.ValueType, resampling: pb.Resampling.ValueType
) -> None:
    around = extended(PHOTO, border, 14)
    vertical = change(PHOTO, pb.TRANSFORM_KIND_VERTICAL_TRANSLATION, down, border, resampling)
    assert np.array_equal(vertical, around[14 - down : 24 - down, 14:28])
    horizontal = change(PHOTO, pb.TRANSFORM_KIND_HORIZONTAL_TRANSLATION, right, border, resampling)
    assert np.array_equal(horizontal, around[14:24, 14 - right : 28 - right])


def test_a_translation_by_half_a_pixel_takes_the_mean_of_two_rows() -> None:
    moved = change(PHOTO, pb.TRANSFORM_KIND_VERTICAL_TRANSLATION, 0.5, pb.BORDER_BLACK, pb.RESAMPLING_BILINEAR)
    rows = np.concatenate([np.zeros((1, 14, 3)), PHOTO])
    expected = (rows[:-1] + rows[1:]) / 2
    assert np.abs(moved - expected).max() <= 0.5


@pytest.mark.parametrize("turns", [1, 2, 3, -1, 5])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("resampling", FILTERS)
def test_a_quarter_turn_is_anticlockwise_and_exact(
    turns: int, border: pb.Border.ValueType, resampling: pb.Resampling.ValueType
) -> None:
    turned = change(SQUARE, pb.TRANSFORM_KIND_ROTATION, 90 * turns, border, resampling)
    assert np.array_equal(turned, np.rot90(SQUARE, turns))


@pytest.mark.parametrize("degrees", [10, 45, 137.5, 350])
def test_a_rotation_on_black_is_that_of_pillow(degrees: float) -> None:
    turned = change(SQUARE, pb.TRANSFORM_KIND_ROTATION, degrees, pb.BORDER_BLACK, pb.RESAMPLING_NEAREST)
    expected = Image.fromarray(SQUARE).rotate(degrees, Image.Resampling.NEAREST)
    assert np.array_equal(turned, np.asarray(expected))


def test_twice_the_size_shows_the_centre_with_every_pixel_four_times() -> None:
    photo = PHOTO[:8, :12]
    larger = change(photo, pb.TRANSFORM_KIND_SCALE, 2, pb.BORDER_BLACK, pb.RESAMPLING_NEAREST)
    assert np.array_equal(larger, photo[2:6, 3:9].repeat(2, axis=0).repeat(2, axis=1))


def test_half_the_size_leaves_a_border_around_the_photo() -> None:
    photo = np.full((8, 12, 3), 200, np.uint8)
    smaller = change(photo, pb.TRANSFORM_KIND_SCALE, 0.5, pb.BORDER_GREY, pb.RESAMPLING_NEAREST)
    assert (smaller[2:6, 3:9] == 200).all()
    assert (smaller == 200).sum() == 4 * 6 * 3
    assert set(np.unique(smaller)) == {128, 200}


@given(
    st.sampled_from(
        [
            (pb.TRANSFORM_KIND_SCALE, 0.25, 16.0),
            (pb.TRANSFORM_KIND_ROTATION, -720.0, 720.0),
            (pb.TRANSFORM_KIND_VERTICAL_TRANSLATION, -10.0, 10.0),
            (pb.TRANSFORM_KIND_HORIZONTAL_TRANSLATION, -14.0, 14.0),
        ]
    ),
    st.floats(0, 1),
    st.sampled_from(BORDERS[2:]),
    st.sampled_from(FILTERS[:2]),
)
def test_a_photo_of_one_colour_stays_so_under_a_border_made_of_it(
    kind: tuple[pb.TransformKind.ValueType, float, float],
    share: float,
    border: pb.Border.ValueType,
    resampling: pb.Resampling.ValueType,
) -> None:
    photo = np.full((10, 14, 3), (7, 77, 177), np.uint8)
    step = float(np.float32(kind[1] + share * (kind[2] - kind[1])))
    changed = change(photo, kind[0], step, border, resampling)
    assert changed.shape == photo.shape
    assert np.array_equal(changed, photo)


def test_flips() -> None:
    def flip(kind: pb.TransformKind.ValueType) -> Pixels:
        return change(PHOTO, kind, 1, pb.BORDER_GREY, pb.RESAMPLING_BILINEAR)

    assert np.array_equal(flip(pb.TRANSFORM_KIND_HORIZONTAL_FLIP), PHOTO[:, ::-1])
    assert np.array_equal(flip(pb.TRANSFORM_KIND_VERTICAL_FLIP), PHOTO[::-1])


def test_brightness_is_clipped() -> None:
    photo = np.array([[[0, 100, 200]]], np.uint8)
    for factor, expected in ((0, [0, 0, 0]), (0.25, [0, 25, 50]), (1.5, [0, 150, 255]), (16, [0, 255, 255])):
        bright = change(photo, pb.TRANSFORM_KIND_BRIGHTNESS, factor, pb.BORDER_GREY, pb.RESAMPLING_BILINEAR)
        assert bright.tolist() == [[expected]]


def test_a_third_of_the_circle_of_hues_turns_red_into_green_and_leaves_grey() -> None:
    photo = np.array([[[200, 0, 0], [0, 200, 0], [90, 90, 90]]], np.uint8)
    turned = change(photo, pb.TRANSFORM_KIND_HUE, 120, pb.BORDER_GREY, pb.RESAMPLING_BILINEAR)
    expected = np.array([[[0, 200, 0], [0, 0, 200], [90, 90, 90]]])
    assert np.abs(turned.astype(int) - expected).max() <= 4  # Pillow tells 256 hues apart
