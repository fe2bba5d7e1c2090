import onnx
import pytest
from onnx import TensorProto, helper
from zfserve_export.onnx_graph import check_graph, describe_model
from zfserve_model.graph.errors import GraphError
from zfserve_model.importing.fingerprint import stored_fingerprint

OPSET = 18


def tiny_graph(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("probabilities", "features")) -> onnx.ModelProto:
    shape: tuple[str | int, ...] = ("N", 2, 2, 3)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


CAST = helper.make_node("Cast", ["pixels"], ["probabilities"], to=TensorProto.FLOAT)
COPY = helper.make_node("Identity", ["probabilities"], ["features"])


def test_check_passes_a_graph_that_keeps_the_promises() -> None:
    check_graph(tiny_graph(CAST, COPY))
    check_graph(tiny_graph(CAST, outputs=("probabilities",)))


def test_check_refuses_another_first_node() -> None:
    turn = helper.make_node("Transpose", ["pixels"], ["turned"], perm=[0, 2, 1, 3])
    cast = helper.make_node("Cast", ["turned"], ["probabilities"], to=TensorProto.FLOAT)
    with pytest.raises(GraphError, match="read by exactly one Cast, but is read by Transpose"):
        check_graph(tiny_graph(turn, cast, COPY))


def test_check_refuses_other_outputs() -> None:
    with pytest.raises(GraphError, match="outputs are features instead of"):
        check_graph(tiny_graph(CAST, COPY, outputs=("features",)))


def test_check_refuses_invalid_onnx() -> None:
    with pytest.raises(GraphError, match="not valid ONNX"):
        check_graph(tiny_graph(COPY, CAST))


def test_a_model_carries_its_fingerprint() -> None:
    model = tiny_graph(CAST, COPY)
    assert stored_fingerprint(model) == ""
    describe_model(model, "cafe")
    assert (stored_fingerprint(model), model.producer_name) == ("cafe", "zfserve")
