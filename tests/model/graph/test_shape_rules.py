"""The shape rules agree with PyTorch on every operation, and spare a worker the imports that PyTorch would need."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes.residual_model import residual_model
from model.graph.test_operations import CASES, Case
from model.onnx_models import make_model
from zfserve_model.graph import shape_rules
from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.shape_rules import empty_result
from zfserve_model.importing.importer import import_graph

IMPORTS = """
import sys
from pathlib import Path
from zfserve_model.importing.importer import import_graph
import_graph(Path(sys.argv[1]))
print(*sorted({"sympy", "torch._dynamo"} & sys.modules.keys()))
"""


def shapes_of(case: Case) -> object:
    """Returns the shapes in the case's graph and the operations that are not supported, or what was raised."""
    try:
        graph = import_graph(make_model([case.node], case.weights, ("N", 3, 8, 9), case.opset))
    except GraphError as error:
        return str(error)
    return graph.shapes, [(node.operation, node.supported) for node in graph.nodes]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_and_pytorch_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    by_rules = shapes_of(case)
    monkeypatch.setattr(shape_rules, "SHAPE_RULES", {})
    assert shapes_of(case) == by_rules


@pytest.mark.parametrize(
    ("operation", "attributes", "shapes"),
    [
        ("Conv", {}, [(1, 3, 8, 8), (4, 2, 3, 3)]),
        ("Conv", {"group": 2}, [(1, 4, 8, 8), (3, 2, 3, 3)]),
        ("Conv", {}, [(1, 3, 8, 8), (4, 3, 3, 3), (5,)]),
        ("Conv", {}, [(1, 3, 2, 2), (4, 3, 3, 3)]),
        ("MaxPool", {"kernel_shape": [9, 1]}, [(1, 3, 8, 8)]),
        ("Add", {}, [(1, 3, 8, 8), (1, 2, 8, 8)]),
        ("Gemm", {}, [(2, 3), (4, 5)]),
        ("Gemm", {"transB": 1}, [(2, 3), (4, 3), (5,)]),
        ("Concat", {"axis": 1}, [(1, 3, 8, 8), (1, 3, 8, 7)]),
        ("Concat", {"axis": 4}, [(1, 3, 8, 8), (1, 3, 8, 8)]),
        ("Softmax", {"axis": 2}, [(1, 3)]),
        ("Gather", {"axis": 2}, [(1, 3), (2,)]),
        ("BatchNormalization", {}, [(1, 3, 8, 8), (3,), (3,), (3,), (4,)]),
    ],
)
def test_shapes_that_do_not_fit_are_left_to_pytorch(
    operation: str, attributes: dict[str, object], shapes: list[tuple[int, ...]]
) -> None:
    assert empty_result(operation, attributes, [torch.empty(shape, device="meta") for shape in shapes]) is None


def test_the_import_of_a_common_network_needs_no_compiler(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(residual_model().SerializeToString())
    found = subprocess.run([sys.executable, "-c", IMPORTS, file], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
