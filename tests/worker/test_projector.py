"""Tests responses against direct calls of deconvnet and attribution, and which forward passes are kept."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.residual_model import HEIGHT, MEAN, STD, WIDTH, write_residual_bundle
from PIL import Image
from zfserve_model.explanation import deconvnet
from zfserve_model.explanation.attribution import attribute, grad_cam
from zfserve_model.importing.importer import import_graph
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import GRAPH, Bundle
from zfserve_runtime.errors import Unimplemented
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_worker.memory_limits import MemoryLimits
from zfserve_worker.network import LoadedNetwork, load_network
from zfserve_worker.projector import Projector, open_projector

RequestFor = Callable[..., worker_pb2.ProjectRequest]
ExplainRequestFor = Callable[..., worker_pb2.ExplainRequest]

LABELS = {"model": "tiny", "version": "1"}
ROOMY = MemoryLimits(cached_traces=2, trace_bytes=1 << 30, signal_bytes=1 << 24, point_bytes=1 << 27)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="session")
def network(bundle: Bundle) -> LoadedNetwork:
    return load_network(bundle)


@pytest.fixture
def projector(network: LoadedNetwork, metrics: Metrics) -> Projector:
    return Projector(network, ROOMY, metrics.of_model("tiny", "1"))


def forward_passes(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("zfserve_inference_seconds_count", LABELS)


def traced(bundle: Bundle, pixels: bytes, layer: str) -> tuple[deconvnet.Trace, str]:
    """Returns the trace of a photo by an import of its own, and the tensor of the layer."""
    raw = torch.tensor(np.frombuffer(pixels, np.uint8).reshape(HEIGHT, WIDTH, 3))
    image = ((raw / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
    entry = bundle.manifest.layer(layer)
    assert entry is not None
    return deconvnet.trace(import_graph(bundle.folder / GRAPH), image, [entry.tensor]), entry.tensor


def projections(projector: Projector, request: worker_pb2.ProjectRequest) -> list[pb.ProjectResponse]:
    return [answer for answer in projector.project(request) if answer is not None]


def explanation(projector: Projector, request: worker_pb2.ExplainRequest) -> pb.ExplainResponse:
    (answer,) = (answer for answer in projector.explain(request) if answer is not None)
    return answer


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
    answers = projections(projector, request)
    trace, tensor = traced(bundle, request.pixels, "stage2")
    expected = list(deconvnet.project(trace, tensor, [5, 3], rule))

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
        assert (answer.layer, answer.rule, [*answer.extended_nodes]) == ("stage2", pb.PROJECTION_RULE_PAPER, [])


def test_pictures_cover_the_box(projector: Projector, request_for: RequestFor) -> None:
    request = request_for(layer="stem", strongest=3)
    image = np.frombuffer(request.pixels, np.uint8).reshape(HEIGHT, WIDTH, 3)
    for answer in projections(projector, request):
        box = answer.box
        assert opened(answer.png).size == (box.right - box.left, box.bottom - box.top)
        patch = np.asarray(opened(answer.patch_png))
        np.testing.assert_array_equal(patch, image[box.top : box.bottom, box.left : box.right])


def test_the_strongest_maps_come_first_and_default_to_nine(projector: Projector, request_for: RequestFor) -> None:
    activations = [answer.activation for answer in projections(projector, request_for())]
    assert len(activations) == 9
    assert activations == sorted(activations, reverse=True)
    assert len(projections(projector, request_for(strongest=2))) == 2


@pytest.mark.parametrize("named", ["n02", "dog", ""])
def test_maps_of_a_class_come_with_their_attributions(
    projector: Projector, bundle: Bundle, request_for: RequestFor, pixels: bytes, named: str
) -> None:
    request = request_for(layer="stage1", for_class={"class_name": named, "count": 3})
    answers = projections(projector, request)
    attribution = attribute(*traced(bundle, pixels, "stage1"), 1 if named else None)
    maps = attribution.leading_maps(3)
    assert [(answer.map, answer.rank, answer.total) for answer in answers] == [(maps[n], n, 3) for n in range(3)]
    units = attribution.leading_units(maps).places
    for answer in answers:
        assert (answer.unit.row, answer.unit.column) == (units[answer.map].row, units[answer.map].column)
        assert answer.attribution == pytest.approx(attribution.maps[answer.map].item(), rel=1e-4)
        said = answer.for_class
        assert (said.class_id, said.label) == (("n01", "cat"), ("n02", "dog"))[attribution.index]
        assert said.index == attribution.index
        assert said.probability == pytest.approx(attribution.probability)


def test_a_requested_unit_applies_to_the_maps_of_a_class_too(projector: Projector, request_for: RequestFor) -> None:
    chosen = {"class_name": "cat", "count": 2}
    for unit, expected in (({"position": {"row": 2, "column": 3}}, (2, 3)), ({"whole_map": {}}, None)):
        for answer in projections(projector, request_for(for_class=chosen, unit=unit)):
            found = (answer.unit.row, answer.unit.column) if answer.HasField("unit") else None
            assert found == expected
    (plain,) = projections(projector, request_for(strongest=1))
    assert not plain.HasField("for_class")


@pytest.mark.parametrize("layer", ["last", "stage1", "stem"])
def test_an_explanation_is_that_of_the_attribution(
    projector: Projector, bundle: Bundle, explain_request_for: ExplainRequestFor, pixels: bytes, layer: str
) -> None:
    answer = explanation(projector, explain_request_for(layer=layer, class_name="dog", method=1))
    name = "stage2" if layer == "last" else layer
    attribution = attribute(*traced(bundle, pixels, name), 1)
    entry = bundle.manifest.layer(name)
    assert entry is not None
    assert (answer.layer, answer.heatmap.height, answer.heatmap.width) == (name, entry.height, entry.width)
    values = np.frombuffer(answer.heatmap.data, "<f4").reshape(entry.height, entry.width)
    np.testing.assert_allclose(values, attribution.units.sum(0).numpy(), rtol=1e-4, atol=1e-6)
    assert answer.score - answer.baseline_score == pytest.approx(values.sum() + answer.completeness_gap, abs=1e-4)
    assert answer.score == pytest.approx(attribution.score)
    assert answer.scale == pytest.approx(np.abs(values).max())
    assert opened(answer.overlay_png).size == (WIDTH, HEIGHT)
    assert (answer.for_class.label, answer.for_class.index) == ("dog", 1)
    assert answer.for_class.probability == pytest.approx(attribution.probability)
    assert answer.method == pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS
    assert answer.model.version == "1"


def test_grad_cam_has_no_baseline(
    projector: Projector, bundle: Bundle, explain_request_for: ExplainRequestFor, pixels: bytes
) -> None:
    answer = explanation(projector, explain_request_for(method=pb.EXPLANATION_METHOD_GRAD_CAM))
    expected = grad_cam(*traced(bundle, pixels, "stage2"))
    values = np.frombuffer(answer.heatmap.data, "<f4").reshape(10, 12)
    np.testing.assert_allclose(values, expected.heatmap.numpy(), rtol=1e-4, atol=1e-6)
    assert answer.for_class.index == expected.index
    assert not answer.HasField("baseline_score")
    assert not answer.HasField("completeness_gap")
    assert answer.method == pb.EXPLANATION_METHOD_GRAD_CAM


def test_one_photo_costs_one_forward_pass(
    projector: Projector, request_for: RequestFor, explain_request_for: ExplainRequestFor, metrics: Metrics
) -> None:
    for layer in ("stem", "stage1", "stage2"):
        assert len(projections(projector, request_for(layer=layer, strongest=1))) == 1
    explanation(projector, explain_request_for())
    assert forward_passes(metrics) == 1
    value = metrics.registry.get_sample_value
    assert value("zfserve_projection_seconds_count", LABELS) == 3
    assert value("zfserve_explanation_seconds_count", LABELS) == 1


def test_an_attribution_is_computed_in_parts_that_fit_the_memory(
    network: LoadedNetwork, explain_request_for: ExplainRequestFor, request_for: RequestFor, metrics: Metrics
) -> None:
    limits = replace(ROOMY, point_bytes=1)  # one point at a time
    projector = Projector(network, limits, metrics.of_model("tiny", "1"))
    steps = list(projector.explain(explain_request_for(class_name="dog")))
    assert [step is None for step in steps] == [True] * 16 + [False]
    assert steps[-1] is not None
    whole = explanation(Projector(network, ROOMY, metrics.of_model("tiny", "1")), explain_request_for(class_name="dog"))
    np.testing.assert_allclose(
        np.frombuffer(steps[-1].heatmap.data, "<f4"), np.frombuffer(whole.heatmap.data, "<f4"), rtol=1e-4, atol=1e-6
    )
    projected = list(projector.project(request_for(for_class={"class_name": "dog", "count": 2})))
    assert [step is None for step in projected] == [True] * 16 + [False] * 2


def test_with_little_memory_each_layer_costs_a_forward_pass(
    network: LoadedNetwork, request_for: RequestFor, metrics: Metrics
) -> None:
    limits = replace(ROOMY, cached_traces=10_000, trace_bytes=1 << 24)
    projector = Projector(network, limits, metrics.of_model("tiny", "1"))
    for layer in ("stage2", "stage1", "stage2"):
        projections(projector, request_for(layer=layer, strongest=1))
    assert forward_passes(metrics) == 2


def test_the_least_recently_used_photo_is_evicted(
    projector: Projector, request_for: RequestFor, metrics: Metrics
) -> None:
    first, second, third = (bytes([shade]) * (HEIGHT * WIDTH * 3) for shade in (10, 20, 30))
    for pixels in (first, second, first, third, first):
        projections(projector, request_for(pixels=pixels, strongest=1))
    assert forward_passes(metrics) == 3
    projections(projector, request_for(pixels=second, strongest=1))
    assert forward_passes(metrics) == 4


def test_the_nodes_whose_rule_is_no_paper_are_named(tmp_path: Path, request_for: RequestFor, metrics: Metrics) -> None:
    projector = open_projector(write_residual_bundle(tmp_path, activation="silu"), ROOMY, metrics)
    named = {
        layer: (answer.rule, [*answer.extended_nodes])
        for layer in ("stem", "stage1", "stage2")
        for answer in projections(projector, request_for(layer=layer, strongest=1))
    }
    first = ["stage1.unit1.inner.silu", "stage1.unit1.silu"]
    assert named == {
        "stem": (pb.PROJECTION_RULE_PAPER, []),
        "stage1": (pb.PROJECTION_RULE_EXTENDED, first),
        "stage2": (pb.PROJECTION_RULE_EXTENDED, [*first, "stage2.unit1.inner.silu", "stage2.unit1.silu"]),
    }


def test_layers_above_a_node_that_no_projection_passes_are_refused(
    bundle_with_attention: Bundle, explain_request_for: ExplainRequestFor, metrics: Metrics
) -> None:
    projector = open_projector(bundle_with_attention, ROOMY, metrics)
    assert [layer.name for layer in projector.manifest.layers][:2] == ["stem", "stage1.unit1"]
    answer = explanation(projector, explain_request_for(layer="stage1"))
    assert answer.layer == "stage1.unit1"
    request = worker_pb2.ProjectRequest(layer="stage2.unit1.relu")
    with pytest.raises(Unimplemented, match=r"stage2\.attention"):
        projections(projector, request)


def test_a_manifest_that_promises_too_much_names_the_node(
    bundle_with_attention: Bundle, bundle: Bundle, request_for: RequestFor, metrics: Metrics
) -> None:
    network = load_network(bundle_with_attention)
    top = bundle.manifest.layers[-1]
    promised = network.manifest.model_copy(update={"layers": (*network.manifest.layers, top)})
    projector = Projector(LoadedNetwork(network.graph, promised), ROOMY, metrics.of_model("tiny", "3"))
    with pytest.raises(Unimplemented, match=r"stage2\.attention"):
        next(projector.project(request_for(layer=top.name)))
