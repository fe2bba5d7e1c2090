"""Activations is called through a real channel. The values are computed by hand, and read by a real engine."""

from collections.abc import Sequence

import numpy as np
import pytest
from fakes.cells_network import (
    ServeCells,
    Values,
    cells_of,
    features_of,
    lit_of,
    photo,
    probabilities_of,
    raw_photo,
)
from fakes.serving import Running
from fakes.study_calls import error_of, messages_of
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import BundleOutdated, ImageUndecodable, InvalidInput, NotFound
from zfserve_server.studies.activations import LayerValues, _messages
from zfserve_server.studies.layers import ReadLayer

PHOTOS = [photo(seed) for seed in range(6)]  # a batch has 4


def request_for(layers: Sequence[str], **options: object) -> pb.ActivationsRequest:
    images = [raw_photo(pixels) for pixels in PHOTOS]
    return pb.ActivationsRequest(**({"images": images, "layers": layers} | options))  # type: ignore[arg-type]


def values_of(message: pb.ActivationsResponse) -> Values:
    values = message.values
    return np.frombuffer(values.data, "<f4").reshape(values.maps, values.height, values.width)


async def test_the_strongest_units_of_each_map_with_their_positions(cells: Running) -> None:
    messages = await messages_of(cells.vision.Activations(request_for(["lit", "features", "cells"])))
    assert [(message.image, message.layer) for message in messages] == [
        (index, layer) for index in range(len(PHOTOS)) for layer in ("lit", "features", "cells")
    ]
    for message in messages:
        pixels = PHOTOS[message.image]
        if message.layer == "features":
            expected = features_of(pixels).reshape(3, 1, 1)
            assert (list(message.rows), list(message.columns)) == ([0, 0, 0], [0, 0, 0])
        else:
            maps = lit_of(pixels) if message.layer == "lit" else cells_of(pixels)
            expected = maps.max(axis=(1, 2), keepdims=True)
            for index, (row, column) in enumerate(zip(message.rows, message.columns, strict=True)):
                assert maps[index, row, column] == expected[index]
        np.testing.assert_allclose(values_of(message), expected, rtol=1e-5)
        assert message.first_map == 0
        assert (message.computation.precision, message.computation.engine) == ("fp32", "onnx-cpu")
        assert (message.model.name, message.model.version) == ("cells", "1")
        assert message.photo_ends is (message.layer == "cells")
        if message.photo_ends:
            assert message.best.index == probabilities_of(pixels).argmax()
            assert message.best.probability == pytest.approx(probabilities_of(pixels).max(), rel=1e-5)
            assert message.best.class_id == f"c-{message.best.label}"
        else:
            assert not message.HasField("best")


async def test_whole_maps(cells: Running) -> None:
    request = request_for(["stage of cells"], form=pb.ACTIVATION_FORM_MAPS)
    messages = await messages_of(cells.vision.Activations(request))
    assert [message.layer for message in messages] == ["cells"] * len(PHOTOS)
    for message, pixels in zip(messages, PHOTOS, strict=True):
        np.testing.assert_allclose(values_of(message), cells_of(pixels), rtol=1e-5)
        assert not message.rows
        assert not message.columns


async def test_maps_pooled_to_a_grid_and_features_as_they_are(cells: Running) -> None:
    request = request_for(["last", "features"], form=pb.ACTIVATION_FORM_GRID, grid_height=2, grid_width=1)
    messages = await messages_of(cells.vision.Activations(request))
    for message in messages:
        lit = lit_of(PHOTOS[message.image])
        if message.layer == "lit":
            np.testing.assert_allclose(values_of(message), lit.reshape(3, 2, 2, 1, 4).mean(axis=(2, 4)), rtol=1e-5)
        else:
            np.testing.assert_allclose(values_of(message), lit.mean(axis=(1, 2), keepdims=True), rtol=1e-5)


async def test_the_features_alone_come_from_the_engine_that_serves(cells: Running) -> None:
    messages = await messages_of(cells.vision.Activations(request_for(["features"])))
    assert [message.photo_ends for message in messages] == [True] * len(PHOTOS)
    for message, pixels in zip(messages, PHOTOS, strict=True):
        np.testing.assert_allclose(values_of(message)[:, 0, 0], features_of(pixels), rtol=1e-5)


async def test_references_and_photos_may_be_mixed(cells: Running) -> None:
    classified = await cells.vision.Classify(pb.ClassifyRequest(image=raw_photo(PHOTOS[2])))
    images = [pb.Image(reference=classified.image_reference), raw_photo(PHOTOS[1])]
    messages = await messages_of(cells.vision.Activations(request_for(["cells"], images=images)))
    for message, pixels in zip(messages, (PHOTOS[2], PHOTOS[1]), strict=True):
        np.testing.assert_allclose(values_of(message), cells_of(pixels).max(axis=(1, 2), keepdims=True), rtol=1e-5)


async def test_a_network_with_a_fixed_batch(serve_cells: ServeCells) -> None:
    async with serve_cells(fixed_batch_size=1) as server:
        messages = await messages_of(server.vision.Activations(request_for(["cells"], form=pb.ACTIVATION_FORM_MAPS)))
    for message, pixels in zip(messages, PHOTOS, strict=True):
        np.testing.assert_allclose(values_of(message), cells_of(pixels), rtol=1e-5)


async def test_a_network_without_features(serve_cells: ServeCells) -> None:
    async with serve_cells(has_features=False) as server:
        messages = await messages_of(server.vision.Activations(request_for(["lit"], form=pb.ACTIVATION_FORM_MAPS)))
        np.testing.assert_allclose(values_of(messages[0]), lit_of(PHOTOS[0]), rtol=1e-5)
        error = await error_of(server.vision.Activations(request_for(["features"])))
    assert type(error) is InvalidInput
    assert error.field == "layers"
    assert "no features" in error.message


async def test_a_bundle_of_schema_1_is_named_with_the_remedy_and_gives_its_features(serve_cells: ServeCells) -> None:
    async with serve_cells(tensors=False) as server:
        error = await error_of(server.vision.Activations(request_for(["cells"])))
        messages = await messages_of(server.vision.Activations(request_for(["features"])))
    assert type(error) is BundleOutdated
    assert "zfserve export --upgrade" in error.message
    np.testing.assert_allclose(values_of(messages[0])[:, 0, 0], features_of(PHOTOS[0]), rtol=1e-5)


async def test_a_network_that_cannot_be_projected(serve_cells: ServeCells) -> None:
    node = "the node 'attn' (Softmax) has no backward step"
    async with serve_cells(projection_obstacle=node, attribution_obstacle=node) as server:
        messages = await messages_of(server.vision.Activations(request_for(["last"])))
        assert [message.layer for message in messages] == ["lit"] * len(PHOTOS)
    async with serve_cells(name="other", projection_obstacle=node, layers=()) as server:
        error = await error_of(server.vision.Activations(request_for(["last"])))
    assert type(error) is NotFound
    assert node in error.message


@pytest.mark.parametrize(
    ("options", "error", "field", "words"),
    [
        ({"images": []}, InvalidInput, "images", "0 photos; send 1 to 64"),
        ({"images": [raw_photo(PHOTOS[0])] * 65}, InvalidInput, "images", "65 photos; send 1 to 64"),
        ({"layers": []}, InvalidInput, "layers", "0 layers; send 1 to 16"),
        ({"layers": ["cells"] * 17}, InvalidInput, "layers", "17 layers"),
        ({"layers": ["lit", "last"]}, InvalidInput, "layers", "names lit twice"),
        ({"layers": ["cell"]}, NotFound, "layers", "last or one of cells, lit"),
        ({"layers": [""]}, NotFound, "layers", "there is no layer ''"),
        ({"form": 9}, InvalidInput, "form", "ACTIVATION_FORM_GRID"),
        ({"form": pb.ACTIVATION_FORM_GRID, "grid_width": 1}, InvalidInput, "grid_height", "choose 1 to 64"),
        (
            {"form": pb.ACTIVATION_FORM_GRID, "grid_height": 65, "grid_width": 1},
            InvalidInput,
            "grid_height",
            "choose 1 to 64",
        ),
        (
            {"form": pb.ACTIVATION_FORM_GRID, "grid_height": 1, "grid_width": 5},
            InvalidInput,
            "grid_width",
            "maps have 4 x 4 units",
        ),
        ({"images": [raw_photo(PHOTOS[0]), pb.Image()]}, InvalidInput, "images", "image 1: the request carries no"),
        (
            {"images": [raw_photo(PHOTOS[0]), pb.Image(encoded=b"junk")]},
            ImageUndecodable,
            "images",
            "image 1: ",
        ),
        ({"images": [pb.Image(reference="guess")]}, NotFound, "image.reference", "unknown or has expired"),
        (
            {"images": [raw_photo(PHOTOS[0]), pb.Image(reference="guess")]},
            NotFound,
            "images",
            "image 1: the image reference is unknown or has expired",
        ),
        ({"model": pb.ModelSelector(name="nobody")}, NotFound, "model.name", "nobody"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_before_any_work(
    cells: Running, options: dict[str, object], error: type, field: str, words: str
) -> None:
    answered = await error_of(cells.vision.Activations(request_for(**({"layers": ["cells"]} | options))))  # type: ignore[arg-type]
    assert type(answered) is error
    assert answered.field == field
    assert words in answered.message
    assert "zfserve_study_images_total{" not in await cells.scrape()


def test_a_message_holds_at_most_a_mebibyte_or_one_map() -> None:
    small, large = ReadLayer("small", "small", 5, 400, 400), ReadLayer("large", "large", 2, 800, 800)
    maps = np.arange(5, dtype=np.float32)[:, None, None] + np.zeros((5, 400, 400), np.float32)
    values = [LayerValues(maps, None, None), LayerValues(np.ones((2, 800, 800), np.float32), None, None)]
    messages = list(_messages([small, large], values))
    assert [(message.layer, message.first_map, message.values.maps) for message in messages] == [
        ("small", 0, 1),  # a map of 625 KiB
        ("small", 1, 1),
        ("small", 2, 1),
        ("small", 3, 1),
        ("small", 4, 1),
        ("large", 0, 1),
        ("large", 1, 1),
    ]
    assert [message.photo_ends for message in messages] == [False] * 6 + [True]
    for message in messages[:5]:
        assert (np.frombuffer(message.values.data, "<f4") == message.first_map).all()
    tiny = ReadLayer("tiny", "tiny", 3000, 10, 10)
    parts = list(_messages([tiny], [LayerValues(np.zeros((3000, 10, 10), np.float32), None, None)]))
    assert [(part.first_map, part.values.maps) for part in parts] == [(0, 2621), (2621, 379)]
    assert all(len(part.values.data) <= 2**20 for part in parts)
