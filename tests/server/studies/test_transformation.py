"""Transform is called through a real channel. The values are computed by hand, and read by a real engine."""

import io
import math

import numpy as np
import pytest
from fakes.cells_network import (
    Pixels,
    ServeCells,
    Values,
    cells_of,
    features_of,
    lit_of,
    photo,
    probabilities_of,
    raw_photo,
)
from fakes.serving import MANIFEST, Running
from fakes.study_calls import error_of, messages_of
from PIL import Image
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import BundleOutdated, InvalidInput, NotFound
from zfserve_server.studies.changes import change
from zfserve_server.studies.transformation_request import DEFAULT_STEPS, validate_transform_request

PHOTO = photo(5)


def request_for(kind: int = pb.TRANSFORM_KIND_VERTICAL_TRANSLATION, **options: object) -> pb.TransformRequest:
    return pb.TransformRequest(**({"image": raw_photo(PHOTO), "kind": kind} | options))  # type: ignore[arg-type]


def distance(before: Values, after: Values) -> tuple[float, float]:
    """Returns the Euclidean distance, and the distance over the norm of `before`."""
    raw = math.sqrt(((after.astype(np.float64) - before) ** 2).sum())
    return raw, raw / math.sqrt((before.astype(np.float64) ** 2).sum())


def moved_down(rows: int) -> Pixels:
    changed = np.full_like(PHOTO, 128)
    changed[rows:] = PHOTO[: 8 - rows]
    return changed


async def test_each_step_has_its_probability_and_both_distances(cells: Running) -> None:
    request = request_for(steps=[0, 2, 3, 4, 5, 6], class_name="blue")
    messages = await messages_of(cells.vision.Transform(request))
    assert [(message.rank, message.total, message.step) for message in messages] == [
        (rank, 6, step) for rank, step in enumerate([0, 2, 3, 4, 5, 6])
    ]
    for message in messages:
        changed = moved_down(int(message.step))
        probabilities = probabilities_of(changed)
        assert message.for_class.index == 2
        assert message.for_class.probability == pytest.approx(probabilities[2], rel=1e-4)
        assert message.best.index == probabilities.argmax()
        assert message.best.probability == pytest.approx(probabilities.max(), rel=1e-4)
        low = distance(cells_of(PHOTO), cells_of(changed))
        high = distance(features_of(PHOTO), features_of(changed))
        assert message.low.layer == "cells"
        assert (message.low.distance, message.low.relative) == pytest.approx(low, rel=1e-4, abs=1e-6)
        assert message.high.layer == "features"
        assert (message.high.distance, message.high.relative) == pytest.approx(high, rel=1e-4, abs=1e-6)
        assert (message.border, message.resampling) == (pb.BORDER_GREY, pb.RESAMPLING_BILINEAR)
        assert message.kind == pb.TRANSFORM_KIND_VERTICAL_TRANSLATION
        assert (message.computation.precision, message.computation.engine) == ("fp32", "onnx-cpu")
        assert message.model.name == "cells"
        assert not message.picture_png
    assert messages[0].untouched.probability == pytest.approx(probabilities_of(PHOTO)[2], rel=1e-5)
    assert messages[0].for_class == messages[0].untouched
    assert (messages[0].low.distance, messages[0].high.distance) == (0, 0)
    assert not any(message.HasField("untouched") for message in messages[1:])


async def test_the_pictures_are_the_changed_inputs(cells: Running) -> None:
    request = request_for(
        pb.TRANSFORM_KIND_ROTATION,
        steps=[30, 90],
        include_pictures=True,
        border=pb.BORDER_REFLECT,
        resampling=pb.RESAMPLING_BICUBIC,
    )
    messages = await messages_of(cells.vision.Transform(request))
    for message in messages:
        picture = np.asarray(Image.open(io.BytesIO(message.picture_png)))
        expected = change(PHOTO, pb.TRANSFORM_KIND_ROTATION, message.step, pb.BORDER_REFLECT, pb.RESAMPLING_BICUBIC)
        assert np.array_equal(picture, expected)
        assert message.best.probability == pytest.approx(probabilities_of(expected).max(), rel=1e-4)
        assert (message.border, message.resampling) == (pb.BORDER_REFLECT, pb.RESAMPLING_BICUBIC)


async def test_by_default_the_class_is_the_best_and_a_step_of_a_dark_photo_has_no_relative_distance(
    cells: Running,
) -> None:
    dark = np.zeros((8, 8, 3), np.uint8)
    request = request_for(image=raw_photo(dark), steps=[8], low_layer="lit", border=pb.BORDER_BLACK)
    (message,) = await messages_of(cells.vision.Transform(request))
    assert message.for_class.index == message.best.index == 0  # all three are equally probable
    assert (message.low.distance, message.low.relative) == (0, 0)


@pytest.mark.parametrize("kind", DEFAULT_STEPS)
def test_the_default_steps(kind: pb.TransformKind.ValueType) -> None:
    spec = MANIFEST.input.model_copy(update={"height": 224, "width": 224})
    settings = validate_transform_request(request_for(kind), MANIFEST.model_copy(update={"input": spec}))
    assert settings.steps == tuple(DEFAULT_STEPS[kind])
    counts = {
        pb.TRANSFORM_KIND_VERTICAL_TRANSLATION: (21, -60, 60),
        pb.TRANSFORM_KIND_HORIZONTAL_TRANSLATION: (21, -60, 60),
        pb.TRANSFORM_KIND_SCALE: (21, 1, 1.8),
        pb.TRANSFORM_KIND_ROTATION: (36, 0, 350),
        pb.TRANSFORM_KIND_HORIZONTAL_FLIP: (2, 0, 1),
        pb.TRANSFORM_KIND_VERTICAL_FLIP: (2, 0, 1),
        pb.TRANSFORM_KIND_HUE: (36, 0, 350),
        pb.TRANSFORM_KIND_BRIGHTNESS: (17, 0.2, 1.8),
    }
    assert (len(settings.steps), settings.steps[0], settings.steps[-1]) == counts[kind]


def test_the_default_steps_of_a_small_input_are_those_that_leave_something_of_the_photo() -> None:
    assert validate_transform_request(request_for(), MANIFEST).steps == (-6, 0, 6)  # its input has 8 rows


async def test_a_network_without_features_has_its_last_layer_on_top(serve_cells: ServeCells) -> None:
    async with serve_cells(has_features=False) as server:
        (message,) = await messages_of(server.vision.Transform(request_for(steps=[2])))
    assert (message.low.layer, message.high.layer) == ("cells", "lit")
    assert (message.high.distance, message.high.relative) == pytest.approx(
        distance(lit_of(PHOTO), lit_of(moved_down(2))), rel=1e-4
    )


async def test_the_same_layer_may_be_low_and_high(serve_cells: ServeCells) -> None:
    async with serve_cells(has_features=False, fixed_batch_size=1) as server:
        messages = await messages_of(server.vision.Transform(request_for(steps=[2, 3], low_layer="lit")))
    assert all(message.low == message.high for message in messages)


@pytest.mark.parametrize("options", [{"tensors": False}, {"layers": (), "projection_obstacle": "no backward step"}])
async def test_without_a_layer_that_can_be_read_there_is_no_low_layer(
    serve_cells: ServeCells, options: dict[str, object]
) -> None:
    async with serve_cells(**options) as server:
        (message,) = await messages_of(server.vision.Transform(request_for(steps=[2])))
        error = await error_of(server.vision.Transform(request_for(steps=[2], low_layer="cells")))
    assert not message.HasField("low")
    assert message.high.layer == "features"
    assert isinstance(error, BundleOutdated if "tensors" in options else NotFound)


@pytest.mark.parametrize(
    ("options", "error", "field", "words"),
    [
        ({"kind": 0}, InvalidInput, "kind", "TRANSFORM_KIND_HUE"),
        ({"kind": 99}, InvalidInput, "kind", "choose one of"),
        ({"border": 9}, InvalidInput, "border", "BORDER_REFLECT"),
        ({"resampling": 9}, InvalidInput, "resampling", "RESAMPLING_BICUBIC"),
        ({"steps": [-60]}, InvalidInput, "steps", "a step is -60; this kind takes -8 to 8"),
        ({"steps": [1.0] * 513}, InvalidInput, "steps", "513 steps; send 1 to 512"),
        ({"steps": [math.nan]}, InvalidInput, "steps", "finite"),
        ({"steps": [math.inf]}, InvalidInput, "steps", "finite"),
        ({"steps": [0, 9]}, InvalidInput, "steps", "-8 to 8"),
        ({"kind": pb.TRANSFORM_KIND_SCALE, "steps": [0]}, InvalidInput, "steps", "0.25 to 16"),
        ({"kind": pb.TRANSFORM_KIND_BRIGHTNESS, "steps": [-0.1]}, InvalidInput, "steps", "0 to 16"),
        ({"kind": pb.TRANSFORM_KIND_HUE, "steps": [1e9]}, InvalidInput, "steps", "-3600 to 3600"),
        ({"kind": pb.TRANSFORM_KIND_VERTICAL_FLIP, "steps": [0.5]}, InvalidInput, "steps", "choose 0 or 1"),
        ({"steps": [1], "class_name": "violet"}, NotFound, "class_name", "red, green, blue"),
        ({"steps": [1], "low_layer": "conv9"}, NotFound, "low_layer", "cells, lit"),
        ({"steps": [1], "image": pb.Image(encoded=b"junk")}, InvalidInput, "image.encoded", ""),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_before_any_work(
    cells: Running, options: dict[str, object], error: type, field: str, words: str
) -> None:
    answered = await error_of(cells.vision.Transform(request_for(**options)))  # type: ignore[arg-type]
    assert isinstance(answered, error)
    assert answered.field == field
    assert words in answered.message
    assert "zfserve_study_images_total{" not in await cells.scrape()


def test_too_many_pictures_are_refused() -> None:
    spec = MANIFEST.input.model_copy(update={"height": 1024, "width": 1024})
    large = MANIFEST.model_copy(update={"input": spec})
    request = request_for(steps=[1.0] * 86)
    validate_transform_request(request, large)
    request.include_pictures = True
    with pytest.raises(InvalidInput, match="the answer would hold 258 MiB and may hold 256 MiB; ask for fewer steps"):
        validate_transform_request(request, large)
