"""Tests that a small file which asks for much memory is refused before it is run, and that sentences stay short."""

import resource
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from model.onnx_models import make_model, node
from zfserve_model.graph.errors import GraphError, readable
from zfserve_model.graph.graph import Node
from zfserve_model.importing.importer import import_graph, require_bounded
from zfserve_model.importing.inference import NodeInference

WEIGHTS = np.random.default_rng(2).standard_normal((4, 3, 3, 3)).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def bomb(nodes: list[onnx.NodeProto], weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Returns a model that adds the sum of the tensor `k`, which `nodes` compute, to its image."""
    tail = [node("Cast", ["k"], ["f"], to=1), node("ReduceSum", ["f"], ["s"], keepdims=0), node("Add", ["x", "s"])]
    return make_model([*nodes, *tail], weights)


def doubled(count: int) -> list[onnx.NodeProto]:
    names = ["one", *(f"d{position}" for position in range(count - 1)), "k"]
    return [node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)]


BOMBS = {
    "integers of Range": bomb(
        [node("Range", ["a", "b", "c"], ["k"])],
        {"a": np.int64(0), "b": np.int64(10**9), "c": np.int64(1)},  # type: ignore[dict-item]
    ),
    "many integers that fit as floats": bomb(
        [node("Expand", ["one", "n"], ["k"])], {"one": integers(1), "n": integers(10**8)}
    ),
    "a Concat that doubles": bomb(doubled(40), {"one": integers(1)}),
    "a Pad": make_model([node("Pad", ["x", "p"])], {"p": integers(0, 0, 0, 0, 0, 0, 10**5, 10**5)}),
    "a Resize": make_model([node("Resize", ["x", "", "s"])], {"s": np.array([1, 1, 1e4, 1e4], np.float32)}),
    "an unknown operation of ONNX": make_model(
        [node("CenterCropPad", ["x", "s"], ["c"], axes=[2, 3]), node("Relu", ["c"])], {"s": integers(10**5, 10**5)}
    ),
    "a Concat that doubles above an unknown operation": bomb(
        [node("Bernoulli", ["x"], ["b"]), node("Shape", ["b"], ["one"]), *doubled(40)], {}
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(name: str) -> None:
    model = BOMBS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for check in (import_graph, lambda model: require_bounded(model, "x", (3, 8, 8), 0)):
        with pytest.raises(GraphError, match="GB"):
            check(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB


def test_an_image_with_the_channels_last_is_bounded_too() -> None:
    model = make_model([node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), node("Conv", ["t", "w"])], {"w": WEIGHTS})
    require_bounded(model, "x", (8, 6, 3), 4)


def test_onnx_tells_the_shape_of_one_operation() -> None:
    model = make_model([node("CenterCropPad", ["x", "s"], axes=[2, 3])], {"s": integers(4, 5)})
    image = torch.empty((2, 3, 8, 8), device="meta")
    alone = Node("CenterCropPad", ("x", "s"), ("y",), {}, "")
    found = NodeInference(model).outputs(alone, {"x": image, "s": torch.tensor([4, 5])})
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"y": (2, 3, 4, 5)}
    other = Node("CenterCropPad", ("x", "s"), ("z",), {}, "")
    assert NodeInference(model).outputs(other, {"x": image}) == {}


def test_the_two_names_of_onnx_own_domain_are_one() -> None:
    model = make_model([node("Relu", ["x"])])
    model.opset_import[0].domain = "ai.onnx"
    model.opset_import.append(onnx.helper.make_opsetid("", 20))
    assert len(import_graph(model).nodes) == 1
    model.opset_import[1].version = 17
    with pytest.raises(GraphError, match="uses the operator sets 20 and 17 of ONNX; export it again with one"):
        import_graph(model)


def test_weights_that_float32_cannot_hold_are_refused() -> None:
    model = make_model([node("Conv", ["x", "w"])], {"w": WEIGHTS.astype(np.float64) * 1e300})
    with pytest.raises(GraphError, match="'w' hold infinite numbers, or such as float32 cannot hold"):
        import_graph(model)


@pytest.mark.parametrize("location", ["w\0.bin", "a" * 5000])
def test_weights_in_a_file_that_cannot_exist_are_missing(location: str, tmp_path: Path) -> None:
    model = make_model([node("Conv", ["x", "w"])], {"w": WEIGHTS})
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value=location)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="is missing; put it beside the model") as raised:
        import_graph(path)
    assert len(str(raised.value)) < 300


def test_a_sentence_has_one_line_and_short_names() -> None:
    long = "n" * 100_000
    assert readable(f"the node\n{long} is\x1b[31m wrong; export it again") == (
        f"the node {'n' * 60}…{'n' * 20} is [31m wrong; export it again"
    )
    many = readable("start " + "word " * 10_000 + "do this")
    assert len(many) < 1010
    assert many.startswith("start ")
    assert many.endswith(" do this")
