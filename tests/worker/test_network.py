"""A bundle's graph is read and held against the manifest, in both schemas."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.residual_model import residual_model
from zfserve_model.importing.fingerprint import graph_fingerprint
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import GRAPH, Bundle, BundleError
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_worker.memory_limits import MemoryLimits
from zfserve_worker.network import load_network
from zfserve_worker.projector import open_projector


def test_a_bundle_is_read_as_its_manifest_says(bundle: Bundle) -> None:
    network = load_network(bundle)
    assert network.manifest == bundle.manifest
    for layer in bundle.manifest.layers:
        assert network.graph.shapes[layer.tensor] == (1, layer.channels, layer.height, layer.width)


def test_a_bundle_of_schema_1_projects_and_explains(schema_1_bundle: Bundle) -> None:
    network = load_network(schema_1_bundle)
    names = {node.outputs[0]: node.operation for node in network.graph.nodes}
    kinds = {"conv": "Conv", "relu": "Relu", "norm": "LRN", "pool": "MaxPool"}
    assert [names[layer.tensor] for layer in network.manifest.layers] == [
        kinds[layer.kind] for layer in network.manifest.layers
    ]
    projector = open_projector(schema_1_bundle, MemoryLimits(2, 1 << 30, 1 << 24, 1 << 27), Metrics())
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8).tobytes()
    for layer, name in (("norm2", "norm2"), ("stage3", "relu3"), ("last", "relu5")):
        request = worker_pb2.ProjectRequest(pixels=pixels, layer=layer, strongest=2)
        answers = [answer for answer in projector.project(request) if answer is not None]
        assert [(answer.layer, answer.rule) for answer in answers] == [(name, pb.PROJECTION_RULE_PAPER)] * 2
    *_, explained = projector.explain(worker_pb2.ExplainRequest(pixels=pixels, layer="last"))
    assert explained is not None
    assert (explained.layer, explained.heatmap.height) == ("relu5", 13)
    assert explained.completeness_gap == pytest.approx(0, abs=1e-2)


def test_a_schema_1_manifest_of_another_chain_is_refused(schema_1_bundle: Bundle) -> None:
    layers = schema_1_bundle.manifest.layers[1:]
    changed = schema_1_bundle.manifest.model_copy(update={"layers": layers})
    with pytest.raises(BundleError, match="describes other layers"):
        load_network(Bundle(schema_1_bundle.folder, changed))


@pytest.mark.parametrize("schema", [1, 2])
def test_another_network_is_refused(bundle: Bundle, schema_1_bundle: Bundle, schema: int) -> None:
    named = schema_1_bundle if schema == 1 else bundle
    manifest = named.manifest.model_copy(update={"fingerprint": "ab" * 32})
    with pytest.raises(BundleError, match="the manifest says abababababab; export the bundle again"):
        load_network(Bundle(named.folder, manifest))


@pytest.mark.parametrize("change", ["a tensor", "a size", "the input", "the classes"])
def test_a_manifest_that_does_not_fit_its_graph_is_refused(bundle: Bundle, change: str) -> None:
    manifest = bundle.manifest
    first, *others = manifest.layers
    changes: dict[str, object] = {
        "a tensor": {"layers": (first.model_copy(update={"tensor": "nowhere"}), *others)},
        "a size": {"layers": (first.model_copy(update={"height": 7}), *others)},
        "the input": {"input": manifest.input.model_copy(update={"height": 100})},
        "the classes": {"classes": manifest.classes[:1]},
    }
    with pytest.raises(BundleError, match="describes"):
        load_network(Bundle(bundle.folder, manifest.model_copy(update=changes[change])))  # type: ignore[arg-type]


def test_a_bundle_without_a_graph_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no usable model\.onnx"):
        load_network(Bundle(tmp_path, bundle.manifest))


def test_a_damaged_graph_is_refused_in_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(b"junk")
    with pytest.raises(BundleError, match="is not an ONNX file"):
        load_network(Bundle(tmp_path, bundle.manifest))


def test_the_fingerprint_covers_the_weights(bundle: Bundle, tmp_path: Path) -> None:
    onnx.save(residual_model(seed=5), tmp_path / GRAPH)
    with pytest.raises(BundleError, match="has the fingerprint"):
        load_network(Bundle(tmp_path, bundle.manifest))


def test_an_operation_that_hides_the_shape_of_the_scores_does_not_matter(bundle: Bundle, tmp_path: Path) -> None:
    """An operation of another domain has outputs of unknown shapes. `Classify` works, and so do the layers below."""
    model = onnx.load(bundle.folder / GRAPH)
    (last,) = (node for node in model.graph.node if "probabilities" in node.output)
    hidden = onnx.helper.make_node("Gelu", [last.input[0]], ["hidden"], "hidden", domain="com.microsoft")
    last.input[0] = "hidden"
    model.graph.node.insert(list(model.graph.node).index(last), hidden)
    del model.graph.value_info[:]
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / GRAPH)
    manifest = bundle.manifest.model_copy(update={"fingerprint": graph_fingerprint(model)})
    network = load_network(Bundle(tmp_path, manifest))
    assert network.graph.probabilities not in network.graph.shapes
