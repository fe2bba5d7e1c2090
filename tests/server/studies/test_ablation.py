"""Ablate is called through a real channel. The values are computed by hand, and replaced by a real engine."""

from collections.abc import Sequence

import numpy as np
import pytest
from fakes.cells_network import (
    Pixels,
    ServeCells,
    Values,
    cells_of,
    lit_of,
    photo,
    probabilities_of,
    probabilities_of_features,
    raw_photo,
)
from fakes.serving import (
    MANIFEST,
    FakeEngine,
    FakeWorker,
    Running,
    projection_is,
    raw_image,
    running_server,
)
from fakes.study_calls import error_of, messages_of
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import BundleOutdated, InvalidInput, NotFound, OutOfRange, Unimplemented, WorkerUnavailable
from zfserve_server.studies.ablation_request import validate_ablate_request

PHOTO = photo(7)


def groups(*maps: Sequence[int]) -> pb.MapGroups:
    return pb.MapGroups(groups=[pb.MapSelection(indices=indices) for indices in maps])


def request_for(**options: object) -> pb.AblateRequest:
    return pb.AblateRequest(**({"image": raw_photo(PHOTO)} | options))  # type: ignore[arg-type]


def ablated(pixels: Pixels, maps: Sequence[int], values: Sequence[float], layer: str = "lit") -> Values:
    """Returns the probabilities of a photo whose maps `maps` have the values `values[map]`."""
    if layer == "lit":
        lit = lit_of(pixels)
        for index in maps:
            lit[index] = values[index]
    else:
        cells = cells_of(pixels)
        for index in maps:
            cells[index] = values[index]
        lit = np.maximum(cells - 100, 0)
    return probabilities_of_features(lit.mean(axis=(1, 2)))


async def test_groups_are_replaced_alone_and_cumulatively(cells: Running) -> None:
    messages = await messages_of(cells.vision.Ablate(request_for(groups=groups([2], [0, 1], [2, 2], [1], [0]))))
    zeros = [0.0] * 3
    expected = [([2], [2]), ([0, 1], [0, 1, 2]), ([2, 2], [0, 1, 2]), ([1], [0, 1, 2]), ([0], [0, 1, 2])]
    assert [(message.rank, message.total) for message in messages] == [(rank, 5) for rank in range(5)]
    for message, (alone, cumulative) in zip(messages, expected, strict=True):
        assert list(message.maps) == alone
        np.testing.assert_allclose(message.alone, ablated(PHOTO, alone, zeros), rtol=1e-4)
        np.testing.assert_allclose(message.cumulative, ablated(PHOTO, cumulative, zeros), rtol=1e-4)
        assert (message.layer, message.attribution) == ("lit", 0)
        assert (message.computation.precision, message.computation.engine) == ("fp32", "onnx-cpu")
        assert message.model.name == "cells"
        assert not message.HasField("for_class")
    np.testing.assert_allclose(messages[0].untouched, probabilities_of(PHOTO), rtol=1e-5)
    assert not any(message.untouched for message in messages[1:])


async def test_the_mean_is_that_of_the_map_for_this_photo(cells: Running) -> None:
    request = request_for(layer="cells", groups=groups([0], [1, 2]), replacement=pb.ABLATION_REPLACEMENT_MEAN)
    messages = await messages_of(cells.vision.Ablate(request))
    means = cells_of(PHOTO).mean(axis=(1, 2)).tolist()
    np.testing.assert_allclose(messages[0].alone, ablated(PHOTO, [0], means, "cells"), rtol=1e-4)
    np.testing.assert_allclose(messages[1].alone, ablated(PHOTO, [1, 2], means, "cells"), rtol=1e-4)
    np.testing.assert_allclose(messages[1].cumulative, ablated(PHOTO, [0, 1, 2], means, "cells"), rtol=1e-4)


async def test_values_of_the_caller(cells: Running) -> None:
    values = [50.0, 5.0, -7.0]
    request = request_for(groups=groups([0], [2]), replacement=pb.ABLATION_REPLACEMENT_VALUES, values=values)
    messages = await messages_of(cells.vision.Ablate(request))
    np.testing.assert_allclose(messages[0].alone, ablated(PHOTO, [0], values), rtol=1e-4)
    np.testing.assert_allclose(messages[1].alone, ablated(PHOTO, [2], values), rtol=1e-4)
    np.testing.assert_allclose(messages[1].cumulative, ablated(PHOTO, [0, 2], values), rtol=1e-4)


@pytest.mark.parametrize("count", [None, 1, 3])
async def test_the_maps_with_the_highest_activations(cells: Running, count: int | None) -> None:
    request = request_for(layer="last") if count is None else request_for(strongest=count)
    messages = await messages_of(cells.vision.Ablate(request))
    order = np.argsort(-lit_of(PHOTO).max(axis=(1, 2)), kind="stable").tolist()
    assert [list(message.maps) for message in messages] == [[index] for index in order[: count or 3]]
    for message in messages:
        np.testing.assert_allclose(message.alone, ablated(PHOTO, message.maps, [0.0] * 3), rtol=1e-4)


async def test_a_reference_a_fixed_batch_and_no_features(serve_cells: ServeCells) -> None:
    async with serve_cells(fixed_batch_size=1, has_features=False, projection_obstacle="no step") as server:
        classified = await server.vision.Classify(pb.ClassifyRequest(image=raw_photo(PHOTO)))
        image = pb.Image(reference=classified.image_reference)
        messages = await messages_of(server.vision.Ablate(request_for(image=image, groups=groups([0], [1]))))
    np.testing.assert_allclose(messages[1].cumulative, ablated(PHOTO, [0, 1], [0.0] * 3), rtol=1e-4)


async def test_a_bundle_of_schema_1_is_refused_with_the_remedy(serve_cells: ServeCells) -> None:
    async with serve_cells(tensors=False) as server:
        error = await error_of(server.vision.Ablate(request_for()))
    assert type(error) is BundleOutdated
    assert "zfserve export --upgrade" in error.message


@pytest.mark.parametrize(
    ("options", "error", "field", "words"),
    [
        ({"groups": pb.MapGroups()}, InvalidInput, "groups", "0 groups; send 1 to 1,024"),
        ({"groups": groups(*[[0]] * 1025)}, InvalidInput, "groups", "1,025 groups"),
        ({"groups": groups([0], [])}, InvalidInput, "groups", "group 1 has no maps"),
        ({"groups": groups([0, 1, 2, 0])}, InvalidInput, "groups", "has 4 maps and lit has 3"),
        ({"groups": groups([0], [1, 3])}, OutOfRange, "groups", "the maps 0 to 2; 3 of group 1"),
        ({"strongest": 0}, InvalidInput, "strongest", "1 to 3"),
        ({"strongest": 4}, OutOfRange, "strongest", "3 maps"),
        ({"for_class": pb.ClassMaps(count=4)}, OutOfRange, "for_class.count", "3 maps"),
        ({"for_class": pb.ClassMaps(class_name="violet")}, NotFound, "for_class.class_name", "red, green, blue"),
        ({"for_class": pb.ClassMaps()}, WorkerUnavailable, None, "without a projection worker"),
        ({"layer": "conv9"}, NotFound, "layer", "cells, lit"),
        ({"replacement": 9}, InvalidInput, "replacement", "ABLATION_REPLACEMENT_MEAN"),
        ({"values": [1.0]}, InvalidInput, "values", "set replacement to it"),
        ({"replacement": pb.ABLATION_REPLACEMENT_VALUES}, InvalidInput, "values", "has 0 values; send one for each"),
        (
            {"replacement": pb.ABLATION_REPLACEMENT_VALUES, "values": [0, 0, float("inf")]},
            InvalidInput,
            "values",
            "not finite",
        ),
        ({"image": pb.Image()}, InvalidInput, "image", "carries no image"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_before_any_work(
    cells: Running, options: dict[str, object], error: type, field: str | None, words: str
) -> None:
    answered = await error_of(cells.vision.Ablate(request_for(**options)))
    assert type(answered) is error
    assert answered.field == field
    assert words in answered.message
    assert "zfserve_study_images_total{" not in await cells.scrape()


def test_an_answer_that_would_be_too_large_is_refused() -> None:
    many = MANIFEST.model_copy(update={"classes": MANIFEST.classes[:1] * 40_000})
    validate_ablate_request(pb.AblateRequest(groups=groups(*[[0]] * 838)), many)
    with pytest.raises(InvalidInput, match="would hold 256 MiB and may hold 256 MiB; ask for fewer groups"):
        validate_ablate_request(pb.AblateRequest(groups=groups(*[[0]] * 839)), many)


def test_a_class_needs_a_network_whose_classes_can_be_explained() -> None:
    obstructed = MANIFEST.model_copy(update={"attribution_obstacle": "the node 'attn' has no backward step"})
    with pytest.raises(Unimplemented, match="attn"):
        validate_ablate_request(pb.AblateRequest(for_class=pb.ClassMaps()), obstructed)


async def test_the_worker_chooses_the_maps_that_speak_for_a_class(engine: FakeEngine, address: str) -> None:
    worker = FakeWorker()
    async with (
        worker.listening(address),
        running_server(engine, worker=True, worker_address=address) as server,
    ):
        await projection_is(server, serving=True)
        request = pb.AblateRequest(
            image=raw_image(3), layer="conv1", for_class=pb.ClassMaps(class_name="class 3", count=2)
        )
        messages = await messages_of(server.vision.Ablate(request))
    (asked,) = worker.requests
    assert (asked.layer, asked.for_class.class_name, asked.for_class.count) == ("conv1", "class 3", 2)
    assert [(list(message.maps), message.attribution) for message in messages] == [([0], 2.0), ([1], 1.0)]
    assert (messages[0].for_class.index, messages[0].for_class.label) == (3, "class 3")
    assert messages[0].for_class.probability == pytest.approx(0.55)
    # The fake engine takes a thousandth of the probability for each replaced map.
    assert [message.alone[3] for message in messages] == pytest.approx([0.549, 0.549])
    assert [message.cumulative[3] for message in messages] == pytest.approx([0.549, 0.548])
