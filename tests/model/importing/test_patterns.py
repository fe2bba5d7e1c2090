"""Tests that operations which an exporter takes apart become one node again, and that the result stays the same."""

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from model.onnx_models import make_model, node, run_onnx_runtime
from torch import Tensor, nn
from zfserve_model.graph.execution import run
from zfserve_model.graph.graph import Graph
from zfserve_model.importing.importer import import_graph

RANDOM = np.random.default_rng(11)


def f32(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def operations(graph: Graph) -> list[str]:
    return [each.operation for each in graph.nodes]


def hold_against_onnx_runtime(model: onnx.ModelProto) -> Graph:
    """Compares at batch sizes 1 and 3, and returns the graph."""
    graph = import_graph(model)
    for batch in (1, 3):
        images = (3 * RANDOM.standard_normal((batch, 3, 8, 8))).astype(np.float32)
        result = run(graph, {graph.input: torch.from_numpy(images)}, [graph.probabilities])[graph.probabilities]
        np.testing.assert_allclose(result.numpy(), run_onnx_runtime(model, images), rtol=1e-5, atol=1e-5)
    return graph


PATTERNS = {
    "relu6(x + 3) / 6": (
        [node("Add", ["x", "three"], ["a"]), node("Clip", ["a", "zero", "six"], ["c"]), node("Div", ["c", "six"])],
        "HardSigmoid",
    ),
    "relu6(x + 3) * (1 / 6)": (
        [node("Add", ["three", "x"], ["a"]), node("Clip", ["a", "zero", "six"], ["c"]), node("Mul", ["sixth", "c"])],
        "HardSigmoid",
    ),
    "clip(x / 6 + 0.5, 0, 1)": (
        [node("Mul", ["x", "sixth"], ["m"]), node("Add", ["m", "half"], ["a"]), node("Clip", ["a", "zero", "one"])],
        "HardSigmoid",
    ),
    "x * hardsigmoid(x)": (
        [node("HardSigmoid", ["x"], ["h"], alpha=1 / 6, beta=0.5), node("Mul", ["x", "h"])],
        "HardSwish",
    ),
    "x * relu6(x + 3) / 6": (
        [
            node("Add", ["x", "three"], ["a"]),
            node("Clip", ["a", "zero", "six"], ["c"]),
            node("Mul", ["x", "c"], ["m"]),
            node("Div", ["m", "six"]),
        ],
        "HardSwish",
    ),
    "x * sigmoid(x)": ([node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"])], "Silu"),
    "sigmoid(2 x) * x": (
        [node("Mul", ["x", "two"], ["m"]), node("Sigmoid", ["m"], ["s"]), node("Mul", ["s", "x"])],
        "Swish",
    ),
    "x * tanh(softplus(x))": (
        [node("Softplus", ["x"], ["p"]), node("Tanh", ["p"], ["t"]), node("Mul", ["x", "t"])],
        "Mish",
    ),
    "x * tanh(log(1 + exp(x)))": (
        [
            node("Exp", ["x"], ["e"]),
            node("Add", ["e", "one"], ["a"]),
            node("Log", ["a"], ["p"]),
            node("Tanh", ["p"], ["t"]),
            node("Mul", ["x", "t"]),
        ],
        "Mish",
    ),
    "x / 2 * (1 + erf(x / sqrt(2)))": (
        [
            node("Div", ["x", "root"], ["d"]),
            node("Erf", ["d"], ["e"]),
            node("Add", ["e", "one"], ["a"]),
            node("Mul", ["x", "a"], ["m"]),
            node("Mul", ["m", "half"]),
        ],
        "Gelu",
    ),
    "(0.5 x) * (erf(x * sqrt(1 / 2)) + 1)": (
        [
            node("Mul", ["x", "half"], ["h"]),
            node("Mul", ["x", "inverse_root"], ["d"]),
            node("Erf", ["d"], ["e"]),
            node("Add", ["one", "e"], ["a"]),
            node("Mul", ["h", "a"]),
        ],
        "Gelu",
    ),
    "x / 2 * (1 + tanh(...))": (
        [
            node("Pow", ["x", "three"], ["p"]),
            node("Mul", ["p", "gelu"], ["q"]),
            node("Add", ["x", "q"], ["r"]),
            node("Mul", ["r", "slope"], ["s"]),
            node("Tanh", ["s"], ["t"]),
            node("Add", ["t", "one"], ["a"]),
            node("Mul", ["x", "half"], ["h"]),
            node("Mul", ["h", "a"]),
        ],
        "Gelu",
    ),
    "max(x, 0)": ([node("Max", ["x", "zero"])], "Relu"),
    "clip(x, 0)": ([node("Clip", ["x", "zero"])], "Relu"),
    "min(relu(x), 6)": ([node("Relu", ["x"], ["r"]), node("Min", ["r", "six"])], "Clip"),
}
NUMBERS = {
    **{name: f32(value) for name, value in {"zero": 0, "half": 0.5, "one": 1, "two": 2, "three": 3, "six": 6}.items()},
    "sixth": f32(1 / 6),
    "root": f32(math.sqrt(2)),
    "inverse_root": f32(math.sqrt(0.5)),
    "gelu": f32(0.044715),
    "slope": f32(math.sqrt(2 / math.pi)),
    "places": np.array([2, 3]),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_becomes_one_node(name: str) -> None:
    nodes, operation = PATTERNS[name]
    graph = hold_against_onnx_runtime(make_model(nodes, NUMBERS))
    assert operations(graph) == [operation]
    assert graph.nodes[0].inputs[0] == "x"


def test_a_mean_over_all_places_is_a_global_pool() -> None:
    graph = hold_against_onnx_runtime(
        make_model([node("ReduceMean", ["x", "places"], ["m"]), node("Mul", ["x", "m"])], NUMBERS)
    )
    assert operations(graph) == ["GlobalAveragePool", "Mul"]


def test_a_relu6_is_no_gate() -> None:
    shifted = [node("Add", ["x", "three"], ["a"]), node("Clip", ["a", "zero", "six"])]
    assert operations(import_graph(make_model(shifted, NUMBERS))) == ["Add", "Clip"]


def test_a_bare_clip_is_a_gate_only_where_it_multiplies() -> None:
    pooled, clipped = node("GlobalAveragePool", ["x"], ["p"]), node("Clip", ["p", "zero", "one"], ["c"])
    gate = hold_against_onnx_runtime(make_model([pooled, clipped, node("Mul", ["x", "c"])], NUMBERS))
    assert operations(gate) == ["GlobalAveragePool", "HardSigmoid", "Mul"]
    assert gate.nodes[1].attributes == {"alpha": 1.0, "beta": 0.0}
    added = import_graph(make_model([pooled, clipped, node("Add", ["x", "c"])], NUMBERS))
    assert operations(added) == ["GlobalAveragePool", "Clip", "Add"]


def test_a_gate_by_another_tensor_stays_a_product() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Sigmoid", ["r"], ["s"]), node("Mul", ["x", "s"])]
    assert operations(hold_against_onnx_runtime(make_model(nodes))) == ["Relu", "Sigmoid", "Mul"]


def test_a_part_that_something_else_reads_stays() -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["m"]), node("Add", ["m", "s"])]
    assert operations(hold_against_onnx_runtime(make_model(nodes))) == ["Sigmoid", "Silu", "Add"]


def layer_norm_nodes(*axes: int) -> list[onnx.NodeProto]:
    return [
        node("ReduceMean", ["x", "axes"], ["mean"]),
        node("Sub", ["x", "mean"], ["c"]),
        node("Pow", ["c", "two"], ["q"]),
        node("ReduceMean", ["q", "axes"], ["v"]),
        node("Add", ["v", "epsilon"], ["e"]),
        node("Sqrt", ["e"], ["d"]),
        node("Div", ["c", "d"], ["n"]),
        node("Mul", ["n", "scale"], ["m"]),
        node("Add", ["m", "shift"]),
    ]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ((3,), ["LayerNormalization"]),
        ((-1, 1, 2), ["LayerNormalization"]),
        ((2, 3), ["InstanceNormalization"]),
        ((1,), ["Transpose", "LayerNormalization", "Transpose"]),
    ],
)
def test_a_norm_that_was_taken_apart(axes: tuple[int, ...], expected: list[str]) -> None:
    weights = {"axes": np.array(axes), "epsilon": f32(1e-5), "scale": f32(1.5), "shift": f32(0.3)} | NUMBERS
    graph = hold_against_onnx_runtime(make_model(layer_norm_nodes(*axes), weights))
    assert operations(graph) == [*expected, "Mul", "Add"]
    assert all(output in graph.shapes for each in graph.nodes for output in each.outputs)


def test_a_group_norm_that_was_taken_apart() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["k"]),
        node("Reshape", ["k", "groups"], ["g"]),
        node("InstanceNormalization", ["g", "ones", "zeros"], ["i"], epsilon=1e-4),
        node("Reshape", ["i", "shape"], ["n"]),
        node("Mul", ["n", "scale"]),
    ]
    weights = {
        "w": RANDOM.standard_normal((6, 3, 3, 3)).astype(np.float32),
        "groups": np.array([0, 3, -1]),
        "ones": np.ones(3, np.float32),
        "zeros": np.zeros(3, np.float32),
        "shape": np.array([-1, 6, 6, 6]),
        "scale": RANDOM.standard_normal((6, 1, 1)).astype(np.float32),
    }
    graph = hold_against_onnx_runtime(make_model(nodes, weights))
    assert operations(graph) == ["Conv", "GroupNormalization", "Mul"]


def test_a_linear_layer_of_a_product_and_a_sum() -> None:
    nodes = [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"], ["m"]), node("Add", ["m", "b"])]
    weights = {"w": RANDOM.standard_normal((192, 5)).astype(np.float32), "b": np.ones(5, np.float32)}
    graph = hold_against_onnx_runtime(make_model(nodes, weights))
    assert operations(graph) == ["Flatten", "Gemm"]
    assert graph.nodes[1].inputs == ("f", "w", "b")


def test_inverse_transposes_cancel() -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        node("Transpose", ["t"], ["u"], perm=[0, 3, 1, 2]),
        node("Relu", ["u"]),
    ]
    graph = hold_against_onnx_runtime(make_model(nodes))
    assert operations(graph) == ["Relu"]
    assert graph.nodes[0].inputs == ("x",)


class Lrn(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(size, alpha=0.1, k=2.0)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(torch.cat([x, x * 2, x - 1], dim=1))
        return normalised


@pytest.mark.parametrize("exporter", ["new", "old"])
@pytest.mark.parametrize("size", [5, 3, 4, 2])
def test_local_response_norm_of_torch(
    exporter: str, size: int, export: Callable[[nn.Module, str], onnx.ModelProto]
) -> None:
    graph = hold_against_onnx_runtime(export(Lrn(size), exporter))
    (norm,) = (each for each in graph.nodes if each.operation == "LRN")
    assert len(graph.nodes) == 4  # x * 2, x - 1, the concatenation, the norm.
    # ONNX places windows of an even size differently, so the number of channels before the middle one is named.
    placed = {"before": size // 2} if size % 2 == 0 else {}
    assert norm.attributes == pytest.approx({"size": size, "alpha": 0.1, "beta": 0.75, "bias": 2.0} | placed)


class Activations(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x) + F.gelu(x) + F.gelu(x, approximate="tanh") + F.mish(x) + F.hardswish(x)
        return F.relu6(F.hardsigmoid(x) * x)


@pytest.mark.parametrize("exporter", ["new", "old"])
def test_activations_of_torch(exporter: str, export: Callable[[nn.Module, str], onnx.ModelProto]) -> None:
    graph = hold_against_onnx_runtime(export(Activations(), exporter))
    found = sorted(each.operation for each in graph.nodes if each.operation != "Add")
    # A module's own x * hardsigmoid(x) is a HardSwish too.
    assert found == ["Clip", "Gelu", "Gelu", "HardSwish", "HardSwish", "Mish", "Silu"]


def test_the_mask_of_a_dropout_that_nobody_reads_is_ignored() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Dropout", ["r"], ["y", "mask"])]
    assert operations(hold_against_onnx_runtime(make_model(nodes))) == ["Relu"]
