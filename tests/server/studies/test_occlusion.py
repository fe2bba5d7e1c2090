"""Occlude is called through a real channel. The values are computed by hand, and compared with captum's."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from fakes.cells_network import (
    LABELS,
    SIDE,
    Pixels,
    ServeCells,
    Values,
    cells_of,
    lit_of,
    photo,
    probabilities_of,
    raw_photo,
)
from fakes.serving import Running
from fakes.study_calls import error_of, messages_of
from torch import Tensor
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import BundleOutdated, InvalidInput, NotFound, OutOfRange

PHOTO = photo(3)


class Grids(NamedTuple):
    """Holds the results of all places, (rows, columns) each."""

    probabilities: Values
    best_classes: Values
    map_sums: Values


def request_for(**options: object) -> pb.OccludeRequest:
    return pb.OccludeRequest(**({"image": raw_photo(PHOTO)} | options))  # type: ignore[arg-type]


def grids_of(messages: Sequence[pb.OccludeResponse]) -> Grids:
    """Puts the places of all messages into grids."""
    plan = messages[0].plan
    grids = Grids(*(np.full((len(plan.tops), len(plan.lefts)), np.nan, np.float32) for _ in range(3)))
    for message in messages:
        rows, columns = list(message.rows), list(message.columns)
        assert np.isnan(grids.probabilities[rows, columns]).all(), "a place came twice"
        grids.probabilities[rows, columns] = message.probabilities
        grids.best_classes[rows, columns] = message.best_classes
        if message.map_sums:
            grids.map_sums[rows, columns] = message.map_sums
    return grids


def covered(plan: pb.OcclusionPlan, row: int, column: int, fill: Pixels) -> Pixels:
    changed = PHOTO.copy()
    square = np.s_[plan.tops[row] : plan.tops[row] + plan.size, plan.lefts[column] : plan.lefts[column] + plan.size]
    changed[square] = fill[square]
    return changed


async def test_every_place_is_computed_and_the_lowest_is_the_summary(cells: Running) -> None:
    request = request_for(size=3, stride=1, class_name="green", layer="cells", map=2)
    messages = await messages_of(cells.vision.Occlude(request))
    plan, summary, grids = messages[0].plan, messages[-1].summary, grids_of(messages)
    assert list(plan.tops) == list(plan.lefts) == [0, 1, 2, 3, 4, 5]
    grey = np.full_like(PHOTO, 128)
    for row in range(6):
        for column in range(6):
            changed = covered(plan, row, column, grey)
            assert grids.probabilities[row, column] == pytest.approx(probabilities_of(changed)[1], rel=1e-4)
            assert grids.best_classes[row, column] == probabilities_of(changed).argmax()
            assert grids.map_sums[row, column] == pytest.approx(cells_of(changed)[2].sum(), rel=1e-5)
    row, column = divmod(int(grids.probabilities.argmin()), 6)
    assert summary.box == pb.Box(left=column, top=row, right=column + 3, bottom=row + 3)
    assert summary.source_box == summary.box
    assert summary.probability == pytest.approx(grids.probabilities.min())
    row, column = divmod(int(grids.map_sums.argmin()), 6)
    assert summary.map_box == pb.Box(left=column, top=row, right=column + 3, bottom=row + 3)
    assert summary.map_sum == pytest.approx(grids.map_sums.min())


async def test_the_plan_describes_the_photo_without_a_square(cells: Running) -> None:
    messages = await messages_of(cells.vision.Occlude(request_for()))
    first, plan = messages[0], messages[0].plan
    lit, probabilities = lit_of(PHOTO), probabilities_of(PHOTO)
    best = int(probabilities.argmax())
    strongest = int(lit.max(axis=(1, 2)).argmax())
    assert (plan.size, list(plan.tops)) == (2, list(range(7)))  # a quarter of 8 pixels; a quarter of 2 is at least 1
    assert (plan.layer, plan.map) == ("lit", strongest)
    assert plan.map_sum == pytest.approx(lit[strongest].sum(), rel=1e-5)
    assert lit[strongest, plan.unit.row, plan.unit.column] == lit.max()
    assert plan.activation == pytest.approx(lit.max(), rel=1e-5)
    assert plan.for_class == plan.best
    assert (plan.best.index, plan.best.label) == (best, LABELS[best])
    assert plan.best.probability == pytest.approx(probabilities.max(), rel=1e-5)
    assert (plan.computation.precision, plan.computation.engine) == ("fp32", "onnx-cpu")
    assert plan.model.name == "cells"
    assert plan.source_box == pb.Box(left=0, top=0, right=8, bottom=8)
    assert (first.sequence, first.done_places, first.total_places, len(first.rows)) == (0, 0, 49, 0)
    assert not any(message.HasField("plan") for message in messages[1:])


async def test_a_coarse_grid_comes_first_and_the_summary_last(cells: Running) -> None:
    messages = await messages_of(cells.vision.Occlude(request_for(size=1)))  # 64 places, 4 in a batch
    assert [message.sequence for message in messages] == list(range(len(messages)))
    assert {message.total_places for message in messages} == {64}
    coarse = messages[1]
    assert (coarse.spacing, coarse.done_places) == (2, 16)
    assert set(zip(coarse.rows, coarse.columns, strict=True)) == {
        (row, column) for row in range(0, 8, 2) for column in range(0, 8, 2)
    }
    finer = messages[2:]
    assert [message.done_places for message in finer] == list(range(20, 65, 4))
    assert [message.spacing for message in finer] == [2] * 11 + [1]
    assert [message.HasField("summary") for message in messages] == [False] * (len(messages) - 1) + [True]


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ({"colour": pb.Colour(red=255)}, lambda: np.broadcast_to(np.array([255, 0, 0], np.uint8), PHOTO.shape)),
        (
            {"photo_mean": pb.PhotoMean()},
            lambda: np.broadcast_to(np.rint(PHOTO.mean(axis=(0, 1))).astype(np.uint8), PHOTO.shape),
        ),
    ],
)
async def test_fills(cells: Running, fill: dict[str, object], expected: object) -> None:
    messages = await messages_of(cells.vision.Occlude(request_for(size=4, stride=4, **fill)))
    grids = grids_of(messages)
    for row in range(2):
        for column in range(2):
            changed = covered(messages[0].plan, row, column, expected())  # type: ignore[operator]
            best = messages[0].plan.best.index
            assert grids.probabilities[row, column] == pytest.approx(probabilities_of(changed)[best], rel=1e-4)


async def test_a_blur_and_a_square_of_the_whole_input(cells: Running) -> None:
    messages = await messages_of(cells.vision.Occlude(request_for(size=8, blur=pb.Blur(sigma=64))))
    assert messages[-1].summary.box == pb.Box(left=0, top=0, right=8, bottom=8)
    assert messages[-1].total_places == 1
    # Under such a blur hardly anything is left of the photo, so the classes are nearly those of its mean.
    mean = np.broadcast_to(np.rint(PHOTO.mean(axis=(0, 1))).astype(np.uint8), PHOTO.shape)
    assert messages[-1].probabilities[0] == pytest.approx(probabilities_of(mean).max(), abs=0.2)


async def test_the_boxes_are_on_the_photo_as_it_was_sent(cells: Running) -> None:
    large = PHOTO.repeat(10, axis=0).repeat(20, axis=1)  # 80 x 160 pixels, squashed to 8 x 8
    messages = await messages_of(cells.vision.Occlude(request_for(image=raw_photo(large), size=2, stride=2)))
    summary = messages[-1].summary
    assert messages[0].plan.source_box == pb.Box(left=0, top=0, right=160, bottom=80)
    for box, source in ((summary.box, summary.source_box), (summary.map_box, summary.map_source_box)):
        assert source == pb.Box(left=20 * box.left, top=10 * box.top, right=20 * box.right, bottom=10 * box.bottom)


async def test_a_reference_replaces_the_photo(cells: Running) -> None:
    classified = await cells.vision.Classify(pb.ClassifyRequest(image=raw_photo(PHOTO)))
    image = pb.Image(reference=classified.image_reference)
    by_reference = await messages_of(cells.vision.Occlude(request_for(image=image)))
    by_photo = await messages_of(cells.vision.Occlude(request_for()))
    np.testing.assert_allclose(grids_of(by_reference).probabilities, grids_of(by_photo).probabilities, rtol=1e-6)


def torch_cells(images: Tensor) -> Tensor:
    """Returns the probabilities of `cells` for images of (N, 3, 8, 8)."""
    lit = torch.relu(torch.nn.functional.avg_pool2d(images, 2) - 100)
    return torch.softmax(lit.mean(dim=(2, 3)) / 20, dim=1)


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (2, 1), (4, 2), (3, 1), (8, 8), (1, 1)])
async def test_equals_captum_once_converted(cells: Running, size: int, stride: int) -> None:
    """Captum's value of a pixel is the mean drop of the probability over all windows that cover the pixel."""
    # In these cases the windows end at the edge. Elsewhere captum's last window is cut off and ours is moved inwards.
    assert (SIDE - size) % stride == 0
    messages = await messages_of(cells.vision.Occlude(request_for(size=size, stride=stride, class_name="red")))
    plan, grids = messages[0].plan, grids_of(messages)
    drops, windows = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    for row, top in enumerate(plan.tops):
        for column, left in enumerate(plan.lefts):
            square = np.s_[top : top + size, left : left + size]
            drops[square] += plan.for_class.probability - grids.probabilities[row, column]
            windows[square] += 1
    converted = drops / np.maximum(windows, 1)
    images = torch.from_numpy(PHOTO.transpose(2, 0, 1)[None].astype(np.float32))
    expected = Occlusion(torch_cells).attribute(
        images, (3, size, size), strides=(3, stride, stride), baselines=128, target=0
    )
    np.testing.assert_allclose(converted, expected[0, 0].numpy(), rtol=0, atol=1e-5)


async def test_a_network_with_a_fixed_batch_and_one_without_features(serve_cells: ServeCells) -> None:
    async with serve_cells(fixed_batch_size=1, has_features=False) as server:
        messages = await messages_of(server.vision.Occlude(request_for(size=2, stride=2, layer="cells")))
    grids = grids_of(messages)
    changed = covered(messages[0].plan, 1, 2, np.full_like(PHOTO, 128))
    assert grids.probabilities[1, 2] == pytest.approx(
        probabilities_of(changed)[messages[0].plan.for_class.index], rel=1e-4
    )


@pytest.mark.parametrize("options", [{"tensors": False}, {"layers": (), "projection_obstacle": "no backward step"}])
async def test_without_a_layer_that_can_be_read_there_is_no_map(
    serve_cells: ServeCells, options: dict[str, object]
) -> None:
    async with serve_cells(**options) as server:
        messages = await messages_of(server.vision.Occlude(request_for(size=4)))
        error = await error_of(server.vision.Occlude(request_for(layer="cells")))
        no_map = await error_of(server.vision.Occlude(request_for(map=0)))
    plan, summary = messages[0].plan, messages[-1].summary
    assert (plan.layer, plan.HasField("unit"), summary.HasField("map_box")) == ("", False, False)
    assert not any(message.map_sums for message in messages)
    assert summary.probability == pytest.approx(np.nanmin(grids_of(messages).probabilities))
    assert isinstance(error, BundleOutdated if "tensors" in options else NotFound)
    assert type(no_map) is InvalidInput
    assert no_map.field == "map"


@pytest.mark.parametrize(
    ("options", "error", "field", "words"),
    [
        ({"size": 9}, InvalidInput, "size", "does not fit the model's input of 8 x 8; choose 1 to 8"),
        ({"colour": pb.Colour(green=256)}, InvalidInput, "colour.green", "choose 0 to 255"),
        ({"blur": pb.Blur(sigma=-1)}, InvalidInput, "blur.sigma", "above 0, up to 64"),
        ({"blur": pb.Blur(sigma=65)}, InvalidInput, "blur.sigma", "above 0, up to 64"),
        ({"blur": pb.Blur(sigma=math.nan)}, InvalidInput, "blur.sigma", "blur.sigma is nan"),
        ({"class_name": "violet"}, NotFound, "class_name", "choose one of red, green, blue"),
        ({"layer": "conv9"}, NotFound, "layer", "choose last or one of cells, lit"),
        ({"map": 3}, OutOfRange, "map", "the maps 0 to 2; 3 is not"),
        ({"image": pb.Image()}, InvalidInput, "image", "carries no image"),
        ({"model": pb.ModelSelector(version="9")}, NotFound, "model.version", "9"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_before_any_work(
    cells: Running, options: dict[str, object], error: type, field: str, words: str
) -> None:
    answered = await error_of(cells.vision.Occlude(request_for(**options)))
    assert type(answered) is error
    assert answered.field == field
    assert words in answered.message
    assert "zfserve_study_images_total{" not in await cells.scrape()


async def test_metrics(cells: Running) -> None:
    await messages_of(cells.vision.Occlude(request_for(size=4, stride=4)))
    metrics = await cells.scrape()
    labels = '{model="cells",study="occlude",version="1"}'
    assert f"zfserve_study_images_total{labels} 5.0" in metrics  # 4 places, and the photo without a square
    assert f"zfserve_study_seconds_count{labels} 1.0" in metrics


async def test_finer_messages_never_make_the_grid_coarser(cells: Running) -> None:
    messages = await messages_of(cells.vision.Occlude(request_for(size=1)))
    assert all(later.spacing <= earlier.spacing for earlier, later in pairwise(messages[1:]))
