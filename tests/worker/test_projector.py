"""Tests responses against direct calls of the deconvnet, the cache of forward passes, and unusable bundles."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from zfserve_model import chain_deconvnet as deconvnet
from zfserve_model.chain_attribution import attribute
from zfserve_model.checkpoint import load_checkpoint
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import WEIGHTS, Bundle, BundleError
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_worker.projector import Projector, open_projector

RequestFor = Callable[..., worker_pb2.ProjectRequest]

LABELS = {"model": "tiny", "version": "1"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def projector(bundle: Bundle, metrics: Metrics) -> Projector:
    return Projector(
        load_checkpoint(bundle.folder / WEIGHTS).network, bundle.manifest, 2, metrics.of_model("tiny", "1")
    )


def forward_passes(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("zfserve_inference_seconds_count", LABELS)


def normalised(pixels: bytes, bundle: Bundle) -> torch.Tensor:
    raw = torch.tensor(np.frombuffer(pixels, np.uint8).reshape(224, 224, 3))
    mean, std = torch.tensor(bundle.manifest.input.mean), torch.tensor(bundle.manifest.input.std)
    return ((raw / 255 - mean) / std).permute(2, 0, 1)


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    assert picture.mode == "RGB"
    return picture


@pytest.mark.parametrize(
    ("rule", "unit"),
    [
        (deconvnet.StrongestUnit(), {}),
        (deconvnet.Position(4, 11), {"position": {"row": 4, "column": 11}}),
        (deconvnet.WholeMap(), {"whole_map": {}}),
    ],
)
def test_float_responses_are_equal_to_the_deconvnets_projections(
    projector: Projector, bundle: Bundle, request_for: RequestFor, rule: deconvnet.UnitRule, unit: dict[str, object]
) -> None:
    request = request_for(selection={"indices": [5, 3]}, unit=unit, format="PICTURE_FORMAT_FLOAT32")
    answers = list(projector.project(request))

    network = load_checkpoint(bundle.folder / WEIGHTS).network
    traced = deconvnet.trace(network, normalised(request.pixels, bundle))
    expected = list(deconvnet.project(traced, "conv3", [5, 3], rule))

    assert [answer.map for answer in answers] == [5, 3]
    assert [(answer.rank, answer.total) for answer in answers] == [(0, 2), (1, 2)]
    for answer, projection in zip(answers, expected, strict=True):
        values = np.frombuffer(answer.float32.data, "<f4").reshape(3, answer.float32.height, answer.float32.width)
        torch.testing.assert_close(torch.tensor(values), projection.pixels)
        assert answer.activation == pytest.approx(projection.activation)
        assert answer.box == pb.Box(**vars(projection.window))
        assert answer.HasField("unit") == (projection.unit is not None)
        if projection.unit is not None:
            assert answer.unit == pb.Position(**vars(projection.unit))
        assert answer.model.fingerprint == bundle.manifest.fingerprint


def test_pictures_cover_the_box(projector: Projector, request_for: RequestFor) -> None:
    request = request_for(layer="pool2", strongest=3)
    image = np.frombuffer(request.pixels, np.uint8).reshape(224, 224, 3)
    for answer in projector.project(request):
        box = answer.box
        assert opened(answer.png).size == (box.right - box.left, box.bottom - box.top)
        patch = np.asarray(opened(answer.patch_png))
        np.testing.assert_array_equal(patch, image[box.top : box.bottom, box.left : box.right])


def test_the_strongest_maps_come_first_and_default_to_nine(projector: Projector, request_for: RequestFor) -> None:
    activations = [answer.activation for answer in projector.project(request_for())]
    assert len(activations) == 9
    assert activations == sorted(activations, reverse=True)
    assert len(list(projector.project(request_for(strongest=2)))) == 2


def test_one_image_costs_one_forward_pass(projector: Projector, request_for: RequestFor, metrics: Metrics) -> None:
    for layer in ("conv1", "conv5", "relu2"):
        assert len(list(projector.project(request_for(layer=layer, strongest=1)))) == 1
    assert forward_passes(metrics) == 1
    assert metrics.registry.get_sample_value("zfserve_projection_seconds_count", LABELS) == 3


@pytest.mark.parametrize("named", ["n02", "dog", ""])
def test_maps_of_a_class_come_with_their_attributions(
    projector: Projector, bundle: Bundle, request_for: RequestFor, pixels: bytes, named: str
) -> None:
    request = request_for(layer="conv4", for_class={"class_name": named, "count": 3})
    answers = list(projector.project(request))
    network = load_checkpoint(bundle.folder / WEIGHTS).network
    traced = deconvnet.trace(network, normalised(pixels, bundle))
    attribution = attribute(network, traced, "conv4", 1 if named else None)
    maps = attribution.leading_maps(3)
    assert [(answer.map, answer.rank, answer.total) for answer in answers] == [(maps[n], n, 3) for n in range(3)]
    units = attribution.leading_units(maps).places
    for answer in answers:
        assert (answer.unit.row, answer.unit.column) == (units[answer.map].row, units[answer.map].column)
        assert answer.attribution == pytest.approx(attribution.maps[answer.map].item(), rel=1e-5)
        said = answer.for_class
        assert (said.class_id, said.label) == (("n01", "cat"), ("n02", "dog"))[attribution.index]
        assert said.index == attribution.index
        assert said.probability == pytest.approx(attribution.probability)


def test_a_requested_unit_applies_to_the_maps_of_a_class_too(projector: Projector, request_for: RequestFor) -> None:
    chosen = {"class_name": "cat", "count": 2}
    for unit, expected in (({"position": {"row": 2, "column": 3}}, (2, 3)), ({"whole_map": {}}, None)):
        for answer in projector.project(request_for(for_class=chosen, unit=unit)):
            found = (answer.unit.row, answer.unit.column) if answer.HasField("unit") else None
            assert found == expected
    (plain,) = projector.project(request_for(strongest=1))
    assert not plain.HasField("for_class")


def test_the_least_recently_used_image_is_evicted(
    projector: Projector, request_for: RequestFor, metrics: Metrics
) -> None:
    first, second, third = (bytes([shade]) * (224 * 224 * 3) for shade in (10, 20, 30))
    for pixels in (first, second, first, third, first):
        list(projector.project(request_for(pixels=pixels, strongest=1)))
    assert forward_passes(metrics) == 3
    list(projector.project(request_for(pixels=second, strongest=1)))
    assert forward_passes(metrics) == 4


def test_a_bundle_with_its_own_weights_opens(bundle: Bundle, request_for: RequestFor, metrics: Metrics) -> None:
    projector = open_projector(bundle, 1, metrics)
    assert len(list(projector.project(request_for(strongest=1)))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "ab" * 32}, "the manifest says abababababab; export the bundle again"),
        ({"layers": ()}, "describes other layers"),
    ],
)
def test_a_manifest_of_another_network_is_refused(
    bundle: Bundle, metrics: Metrics, changes: dict[str, object], message: str
) -> None:
    manifest = bundle.manifest.model_copy(update=changes)
    with pytest.raises(BundleError, match=message):
        open_projector(Bundle(bundle.folder, manifest), 1, metrics)


def test_a_bundle_without_weights_is_refused(bundle: Bundle, metrics: Metrics, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no usable weights"):
        open_projector(Bundle(tmp_path, bundle.manifest), 1, metrics)
