"""Tests which tensors become logits, probabilities and features."""

import numpy as np
import onnx
import pytest
import torch
from model.onnx_models import make_model, node, run_onnx_runtime
from zfserve_model.graph.execution import run
from zfserve_model.importing.importer import import_graph

RANDOM = np.random.default_rng(9)
WEIGHTS = {
    "k": RANDOM.standard_normal((6, 3, 8, 8)).astype(np.float32),
    "c": RANDOM.standard_normal((5, 6, 1, 1)).astype(np.float32),
    "w": RANDOM.standard_normal((5, 6)).astype(np.float32),
    "b": np.ones(5, np.float32),
    "axes": np.array([2, 3]),
}
TRUNK = [node("Conv", ["x", "k"], ["m"]), node("Relu", ["m"], ["r"])]
LINEAR = [*TRUNK, node("Flatten", ["r"], ["f"]), node("Gemm", ["f", "w", "b"], ["g"], transB=1)]
CONVOLUTION = [*TRUNK, node("Conv", ["r", "c"], ["g"])]


def check(nodes: list[onnx.NodeProto], opset: int = 20) -> tuple[str, str | None]:
    """Holds probabilities against ONNX Runtime. Returns the names of the logits and the features, both vectors."""
    model = make_model(nodes, WEIGHTS, opset=opset)
    graph = import_graph(model)
    images = RANDOM.standard_normal((2, 3, 8, 8)).astype(np.float32)
    names = [graph.probabilities, graph.logits, *([graph.features] if graph.features else [])]
    values = run(graph, {graph.input: torch.from_numpy(images)}, names)
    expected = run_onnx_runtime(model, images).reshape(2, -1)
    np.testing.assert_allclose(values[graph.probabilities].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert all(value.dim() == 2 and tuple(value.shape)[1:] == graph.shapes[name][1:] for name, value in values.items())
    return graph.logits, graph.features


@pytest.mark.parametrize(
    ("nodes", "opset", "logits", "features"),
    [
        ([*LINEAR, node("Softmax", ["g"])], 20, "g", "f"),
        ([*LINEAR, node("Softmax", ["g"], ["s"]), node("Cast", ["s"], to=1)], 20, "g", "f"),
        ([*LINEAR, node("Identity", ["g"])], 20, "g", "f"),
        ([*CONVOLUTION, node("Softmax", ["g"], axis=1)], 20, "g/flat", "r/flat"),
        ([*CONVOLUTION, node("Softmax", ["g"], axis=1)], 9, "g/flat", "r/flat"),
        ([*CONVOLUTION, node("Softmax", ["g"], ["s"], axis=1), node("Flatten", ["s"])], 20, "g/flat", "r/flat"),
        ([*CONVOLUTION, node("Squeeze", ["g", "axes"], ["q"]), node("Softmax", ["q"])], 20, "q", "r/flat"),
        ([*CONVOLUTION, node("Identity", ["g"])], 20, "g/flat", "r/flat"),
        ([*TRUNK, node("Flatten", ["r"], ["f"]), node("Softmax", ["f"])], 20, "f", None),
    ],
)
def test_logits_and_features(nodes: list[onnx.NodeProto], opset: int, logits: str, features: str | None) -> None:
    assert check(nodes, opset) == (logits, features)
