"""A residual network, and one with a node that no projection passes, are served together by real processes."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.residual_model import HEIGHT, MEAN, STD, WIDTH, write_residual_bundle
from processes import Service, running_service, wait_for_projections
from zfserve import Client, InvalidInput, NotFound, Unimplemented
from zfserve_model.explanation import deconvnet
from zfserve_model.explanation.attribution import attribute
from zfserve_model.graph.execution import run
from zfserve_model.importing.importer import import_graph
from zfserve_runtime.bundle import GRAPH, Bundle, load_bundle

PHOTO = Path(__file__).parent.parent.parent / "samples" / "church.jpg"
SCHEMA_1 = Path(__file__).parent.parent / "bundles" / "schema-1"
PIXELS = np.random.default_rng(7).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def residual(models: Path) -> Bundle:
    return write_residual_bundle(_folder(models, "residual"), name="residual")


@pytest.fixture(scope="module")
def service(models: Path, residual: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    write_residual_bundle(_folder(models, "attention"), name="attention", attention=True)
    shutil.copytree(SCHEMA_1, models / "narrow" / "1")
    flags = ("--engine", "onnx-cpu", "--default-model", "residual", "--reload-interval", "0.2")
    with running_service(models, tmp_path_factory.mktemp("service"), *flags) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.address) as client:
        wait_for_projections(client)
        yield client


def wait_until_served(client: Client, name: str, version: str) -> None:
    deadline = time.monotonic() + 60
    while (name, version, "ready") not in {(each.name, each.version, each.state) for each in client.list_models()}:
        assert time.monotonic() < deadline, "the version was never served"
        time.sleep(0.05)


def _folder(models: Path, name: str) -> Path:
    folder = models / name / "1"
    folder.mkdir(parents=True)
    return folder


def traced(bundle: Bundle) -> tuple[deconvnet.Trace, str]:
    graph = import_graph(bundle.folder / GRAPH)
    image = ((torch.from_numpy(PIXELS) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
    tensor = bundle.manifest.layers[-1].tensor
    return deconvnet.trace(graph, image, [tensor]), tensor


def test_server_and_worker_compute_the_same_network(client: Client, residual: Bundle) -> None:
    trace, _ = traced(residual)
    graph = trace.graph
    expected = run(graph, {graph.input: trace.image[None]}, [graph.probabilities])[graph.probabilities][0]
    answer = client.classify(PIXELS, features=True)
    assert answer.features is not None
    assert len(answer.features) == residual.manifest.feature_width
    for score in answer.classes:
        assert score.probability == pytest.approx(expected[score.index].item(), abs=1e-4)
    explained = client.explain(PIXELS)
    assert explained.served_probability == pytest.approx(explained.for_class.probability, abs=1e-4)
    assert explained.served_precision == "fp32"


def test_a_photo_is_classified_projected_and_explained(client: Client, residual: Bundle) -> None:
    answer = client.classify(PHOTO)
    for layer in ("stem", "stage1", "last"):
        projections = list(client.project(answer.image_reference, layer, strongest=2))
        assert len(projections) == 2
        assert all(projection.rule == "paper" and projection.png for projection in projections)
    explained = client.explain(answer.image_reference, class_name=answer.classes[0].label)
    assert (explained.layer, explained.for_class.label) == ("stage2", answer.classes[0].label)
    assert explained.overlay_png


def test_projections_and_explanations_are_those_of_the_model_room(client: Client, residual: Bundle) -> None:
    trace, tensor = traced(residual)
    maps = deconvnet.strongest_maps(trace, tensor, 3)
    answers = list(client.project(PIXELS, "last", strongest=3, format="float32"))
    assert [answer.map for answer in answers] == maps
    for answer, expected in zip(answers, deconvnet.project(trace, tensor, maps), strict=True):
        assert answer.pixels is not None
        scale = float(expected.pixels.abs().max())
        np.testing.assert_allclose(answer.pixels.to_numpy(), expected.pixels.numpy(), atol=1e-4 * scale)
    attribution = attribute(trace, tensor, 1)
    explained = client.explain(PIXELS, class_name="dog")
    np.testing.assert_allclose(explained.heatmap.to_numpy(), attribution.heatmap.numpy(), rtol=1e-3, atol=1e-5)
    assert explained.score == pytest.approx(attribution.score, abs=1e-4)


def test_a_network_that_cannot_be_projected_names_the_node_and_classifies(client: Client) -> None:
    assert len(client.classify(PHOTO, model="attention").classes) == 2
    with pytest.raises(Unimplemented, match=r"stage2\.attention"):
        list(client.project(PHOTO, "stage2.unit1", model="attention"))
    assert "stage2.attention" in client.describe(model="attention").projection_obstacle
    assert client.explain(PHOTO, layer="stage1", model="attention").overlay_png


def test_a_new_version_may_have_another_input_and_other_classes(client: Client, models: Path) -> None:
    name = load_bundle(SCHEMA_1).manifest.name
    before = client.classify(PHOTO, model=name)
    assert len(before.classes) == 3
    (old,) = client.project(before.image_reference, "conv5", strongest=1, model=name)
    assert (old.layer, old.model.version) == ("conv5", "1")
    hidden = models / "narrow" / ".2"
    hidden.mkdir()
    write_residual_bundle(hidden, version="2", seed=3, name=name)
    hidden.rename(models / "narrow" / "2")
    wait_until_served(client, name, "2")
    answer = client.classify(PHOTO, model=name)
    assert (answer.model.version, len(answer.classes)) == ("2", 2)
    (projection,) = client.project(answer.image_reference, "last", strongest=1)
    assert (projection.layer, projection.model.version) == ("stage2", "2")
    assert client.explain(PHOTO, model=name).layer == "stage2"
    with pytest.raises((InvalidInput, NotFound), match="send the image itself"):
        client.classify(before.image_reference, model=name)
