"""Tests what a fingerprint depends on: the meaning of the model and its weights, and nothing else."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model.onnx_models import make_model, node
from onnx import numpy_helper
from zfserve_model.importing.fingerprint import graph_fingerprint
from zfserve_model.importing.importer import GraphError
from zfserve_model.importing.model_file import read_model


def residual_model() -> onnx.ModelProto:
    weights = np.random.default_rng(3).standard_normal((3, 3, 3, 3)).astype(np.float32)
    return make_model(
        [
            node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], name="first"),
            node("Relu", ["c"], ["r"], name="second"),
            node("Sigmoid", ["x"], ["s"]),
            node("Add", ["r", "s"], ["a"]),
            node("Reshape", ["a", "shape"], ["y"]),
        ],
        {"w": weights, "b": np.zeros(3, np.float32), "shape": np.array([0, -1], np.int64)},
    )


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    graph = model.graph
    for proto in graph.node:
        proto.input[:] = [names.get(name, name) for name in proto.input]
        proto.output[:] = [names.get(name, name) for name in proto.output]
        proto.name = names.get(proto.name, proto.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


@given(seed=st.integers(0, 2**32), labels=st.lists(st.text(min_size=1), min_size=11, max_size=11, unique=True))
def test_names_order_and_metadata_do_not_matter(seed: int, labels: list[str]) -> None:
    expected = graph_fingerprint(residual_model())
    model = residual_model()
    shuffle = random.Random(seed).shuffle
    nodes, weights = list(residual_model().graph.node), list(residual_model().graph.initializer)
    shuffle(nodes)
    shuffle(weights)
    model.graph.ClearField("node")
    model.graph.ClearField("initializer")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)
    rename(model, dict(zip(["x", "w", "b", "c", "r", "s", "a", "shape", "y", "first", "second"], labels, strict=True)))
    model.producer_name, model.graph.name, model.doc_string = "someone", "another", "words"
    onnx.helper.set_model_props(model, {"fingerprint": "old"})
    assert graph_fingerprint(model) == expected


def test_the_place_of_the_weights_does_not_matter(tmp_path: Path) -> None:
    expected = graph_fingerprint(residual_model())
    as_node = residual_model()
    weight = as_node.graph.initializer[0]
    as_node.graph.node.insert(0, node("Constant", [], [weight.name], value=weight))
    del as_node.graph.initializer[0]
    assert graph_fingerprint(as_node) == expected
    as_list = residual_model()
    as_list.graph.node.insert(0, node("Constant", [], ["shape"], value_ints=[0, -1]))
    del as_list.graph.initializer[2]
    assert graph_fingerprint(as_list) == expected
    as_floats = residual_model()
    values = numpy_helper.to_array(as_floats.graph.initializer[1])
    as_floats.graph.initializer[1].ClearField("raw_data")
    as_floats.graph.initializer[1].float_data.extend(values.tolist())
    assert graph_fingerprint(as_floats) == expected
    onnx.save(residual_model(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists()
    assert graph_fingerprint(read_model(tmp_path / "m.onnx")) == expected


def test_dead_nodes_and_written_out_defaults_do_not_matter() -> None:
    expected = graph_fingerprint(residual_model())
    model = residual_model()
    model.graph.node.append(node("Tanh", ["a"], ["unused"]))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("group", 1))
    assert graph_fingerprint(model) == expected


def _other_weight(model: onnx.ModelProto) -> None:
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array.reshape(-1)[5] = np.nextafter(array.reshape(-1)[5], np.float32(9))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))


def _other_type(model: onnx.ModelProto) -> None:
    zeros = numpy_helper.to_array(model.graph.initializer[1]).astype(np.float64)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(zeros, "b"))


def _other_operation(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Sigmoid"


def _other_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ints[0] = 2


def _other_wiring(model: onnx.ModelProto) -> None:
    model.graph.node[3].input[1] = "c"


def _other_order_of_inputs(model: onnx.ModelProto) -> None:
    model.graph.node[3].input[:] = ["s", "r"]


def _other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "a"


def _other_operator_set(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def _other_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16


@pytest.mark.parametrize(
    "change",
    [
        _other_weight,
        _other_type,
        _other_operation,
        _other_attribute,
        _other_wiring,
        _other_order_of_inputs,
        _other_output,
        _other_operator_set,
        _other_size,
    ],
)
def test_the_meaning_matters(change: Callable[[onnx.ModelProto], None]) -> None:
    model = residual_model()
    change(model)
    assert graph_fingerprint(model) != graph_fingerprint(residual_model())


def test_a_branch_matters() -> None:
    def model(operation: str) -> onnx.ModelProto:
        branches = {
            name: onnx.helper.make_graph(
                [node(kind, ["x"], [name])], name, [], [onnx.helper.make_tensor_value_info(name, 1, None)]
            )
            for name, kind in (("then", "Relu"), ("else", operation))
        }
        choice = node("If", ["c"], ["y"], then_branch=branches["then"], else_branch=branches["else"])
        return make_model([choice], {"c": np.array(True)})

    assert graph_fingerprint(model("Tanh")) == graph_fingerprint(model("Tanh"))
    assert graph_fingerprint(model("Tanh")) != graph_fingerprint(model("Sigmoid"))


def test_a_cycle_has_no_fingerprint() -> None:
    model = make_model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"])])
    with pytest.raises(GraphError, match="depends on its own output"):
        graph_fingerprint(model)
