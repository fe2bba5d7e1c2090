"""Holds the import of nine small networks, by both of torch's exporters, against ONNX Runtime and PyTorch."""

import numpy as np
import onnx
import pytest
import torch
from model.conftest import export_module
from model.onnx_models import run_onnx_runtime
from model.small_networks import SIZE, SMALL_NETWORKS, make_small_network
from zfserve_model.graph.execution import run
from zfserve_model.importing.importer import import_graph
from zfserve_model.layers.layer_table import layer_table


@pytest.fixture(scope="module", params=[(name, how) for name in SMALL_NETWORKS for how in ("new", "old")], ids="-".join)
def model(request: pytest.FixtureRequest) -> tuple[str, onnx.ModelProto]:
    name, exporter = request.param
    return name, export_module(make_small_network(name), exporter, SIZE)


def test_a_small_network_equals_onnx_runtime_and_pytorch(model: tuple[str, onnx.ModelProto]) -> None:
    name, file = model
    graph = import_graph(file)
    assert all(node.supported for node in graph.nodes)
    random = np.random.default_rng(4)
    for batch in (1, 3):
        images = random.standard_normal((batch, 3, SIZE, SIZE)).astype(np.float32)
        with torch.no_grad():
            result = run(graph, {graph.input: torch.from_numpy(images)}, [graph.logits])[graph.logits]
            source = make_small_network(name)(torch.from_numpy(images))
        expected = run_onnx_runtime(file, images)
        assert np.abs(expected).max() > 0.1  # Logits that vanish would agree with anything.
        np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(result.numpy(), source.numpy(), rtol=0, atol=1e-4)


def test_features_shapes_and_a_run_from_the_middle(model: tuple[str, onnx.ModelProto]) -> None:
    graph = import_graph(model[1])
    assert graph.features is not None
    images = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32))
    names = [name for node in graph.nodes for name in node.outputs]
    with torch.no_grad():
        values = run(graph, {graph.input: images}, names)
    assert {name: tuple(value.shape)[1:] for name, value in values.items()} == {
        name: graph.shapes[name][1:] for name in names
    }
    last = graph.nodes[-1]
    assert last.operation == "Gemm"
    weight, bias = (graph.constants[name] for name in last.inputs[1:])
    expected = values[graph.features] @ (weight.T if last.attributes.get("transB") else weight) + bias
    torch.testing.assert_close(values[graph.logits], expected, rtol=0, atol=1e-5)
    again = run(graph, {graph.features: values[graph.features]}, [graph.logits])
    torch.testing.assert_close(again[graph.logits], values[graph.logits])


def test_both_exporters_give_the_same_operations() -> None:
    for name in ("residual", "local response"):
        new, old = (import_graph(export_module(make_small_network(name), how, SIZE)) for how in ("new", "old"))
        operations = [[node.operation.replace("Flatten", "Reshape") for node in each.nodes] for each in (new, old)]
        assert operations[0] == operations[1]
        assert [node.name for node in new.nodes] == [node.name for node in old.nodes]


@pytest.mark.parametrize("free_batch", [True, False])
@pytest.mark.parametrize("exporter", ["new", "old"])
def test_maps_with_their_channels_last_are_no_layers(exporter: str, free_batch: bool) -> None:
    """Torch's current exporter writes the pool of such a network as a Gather that reads the shape of the image."""
    model = export_module(make_small_network("next"), exporter, SIZE, free_batch=free_batch)
    graph = import_graph(model)
    assert not {"Gather", "Shape"} & {node.operation for node in graph.nodes}
    table = layer_table(graph)
    assert [(row.name, row.kind, row.channels, row.height, row.width) for row in table] == [
        ("0", "norm", 8, 8, 8),
        ("1.0", "add", 8, 8, 8),
        ("1.1", "add", 8, 8, 8),
        ("2", "conv", 12, 4, 4),
        ("3.0", "add", 12, 4, 4),
        ("3.1", "add", 12, 4, 4),
    ]
    images = torch.zeros(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert run(graph, {graph.input: images}, [graph.logits])[graph.logits].shape == (2, 7), "for an attribution"
