"""Tests that each file which cannot be a network is refused with one sentence that says what to do."""

import random
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from model.onnx_models import make_model, node
from onnx import TensorProto, helper, numpy_helper
from zfserve_model.importing.importer import GraphError, import_graph
from zfserve_model.importing.model_file import read_model

WEIGHTS = np.random.default_rng(2).standard_normal((4, 3, 3, 3)).astype(np.float32)


def convolution(**changes: np.ndarray) -> onnx.ModelProto:
    return make_model([node("Conv", ["x", "w"], ["c"]), node("Flatten", ["c"])], {"w": WEIGHTS} | changes)


def old_operators() -> onnx.ModelProto:
    return make_model([node("Relu", ["x"])], opset=8)


def no_operator_set() -> onnx.ModelProto:
    model = make_model([node("Relu", ["x"])])
    model.opset_import[0].domain = "com.example"
    return model


def two_inputs() -> onnx.ModelProto:
    model = make_model([node("Add", ["x", "other"])])
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3, 8, 8]))
    return model


def no_input() -> onnx.ModelProto:
    model = convolution()
    del model.graph.input[:]
    return model


def vector_input() -> onnx.ModelProto:
    return make_model([node("Relu", ["x"])], shape=("N", 100))


def five_channels() -> onnx.ModelProto:
    return make_model([node("Relu", ["x"])], shape=("N", 5, 8, 8))


def free_size() -> onnx.ModelProto:
    return make_model([node("Relu", ["x"])], shape=("N", 3, "H", "W"))


def text_input() -> onnx.ModelProto:
    model = convolution()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    return model


def no_output() -> onnx.ModelProto:
    model = convolution()
    del model.graph.output[:]
    return model


def unknown_output() -> onnx.ModelProto:
    return make_model([node("Relu", ["x"])], outputs=("nothing",))


def cycle() -> onnx.ModelProto:
    return make_model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"])])


def dangling_name() -> onnx.ModelProto:
    return make_model([node("Add", ["x", "nowhere"])])


def two_makers() -> onnx.ModelProto:
    return make_model([node("Relu", ["x"]), node("Sigmoid", ["x"])])


def nan_weights() -> onnx.ModelProto:
    return convolution(w=np.full_like(WEIGHTS, np.nan))


def infinite_weights() -> onnx.ModelProto:
    return convolution(w=np.full_like(WEIGHTS, np.inf))


def weights_of_another_network() -> onnx.ModelProto:
    return convolution(w=WEIGHTS[:, :2])


def truncated_weights() -> onnx.ModelProto:
    model = convolution()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    return model


def impossible_shape() -> onnx.ModelProto:
    model = convolution()
    model.graph.initializer[0].dims[0] = -4
    return model


def text_weights() -> onnx.ModelProto:
    model = convolution()
    model.graph.initializer[0].CopyFrom(
        TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], string_data=[b"words"])
    )
    return model


def wrong_reshape() -> onnx.ModelProto:
    return make_model([node("Reshape", ["x", "shape"])], {"shape": np.array([0, 7])})


def missing_attribute() -> onnx.ModelProto:
    return make_model([node("Cast", ["x"])])


def missing_input() -> onnx.ModelProto:
    return make_model([node("Conv", ["x"])])


def large_constant() -> onnx.ModelProto:
    """Returns 167 bytes that ask for 40 GB."""
    nodes = [node("ConstantOfShape", ["s"], ["c"]), node("ReduceSum", ["c"], ["k"]), node("Mul", ["x", "k"])]
    return make_model(nodes, {"s": np.array([100_000, 100_000])})


def many_large_constants() -> onnx.ModelProto:
    made = [node("ConstantOfShape", ["s"], [f"c{i}"]) for i in range(10)]
    return make_model([*made, node("Sum", ["x", *(f"c{i}" for i in range(10))])], {"s": np.array([15_000, 15_000])})


def large_activation() -> onnx.ModelProto:
    return make_model([node("Tile", ["x", "s"])], {"s": np.array([1, 1, 10_000, 1000])})


def long_range() -> onnx.ModelProto:
    nodes = [node("Range", ["a", "b", "c"], ["r"]), node("ReduceSum", ["r"], ["k"]), node("Mul", ["x", "k"])]
    return make_model(nodes, {"a": np.float32(0), "b": np.float32(1e12), "c": np.float32(1)})  # type: ignore[dict-item]


def function_that_calls_itself() -> onnx.ModelProto:
    model = make_model([helper.make_node("F", ["x"], ["y"], domain="own")])
    inner = helper.make_node("F", ["a"], ["b"], domain="own")
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [inner], [helper.make_opsetid("", 20)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def functions_that_double() -> onnx.ModelProto:
    """Returns 30 functions, each of which calls the next twice: a billion operations once inlined."""
    model = make_model([helper.make_node("F0", ["x"], ["y"], domain="own")])
    model.opset_import.append(helper.make_opsetid("own", 1))
    operators = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for level in range(30):
        name, domain = (f"F{level + 1}", "own") if level < 29 else ("Relu", "")
        calls = [helper.make_node(name, [a], [b], domain=domain) for a, b in (("a", "m"), ("m", "b"))]
        model.functions.append(helper.make_function("own", f"F{level}", ["a"], ["b"], calls, operators))
    return model


CASES: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (old_operators, "operator set 8; export it again with operator set 9 or later"),
    (no_operator_set, "does not name its version of ONNX's operators"),
    (two_inputs, "exactly one input, the image, and this has 'x', 'other'; export it with one input"),
    (no_input, "exactly one input, the image, and this has none"),
    (vector_input, r"the input 'x' has the shape \(\?, 100\) and is no image"),
    (five_channels, r"the shape \(\?, 5, 8, 8\) and is no image; it must be float \(N, 3, H, W\)"),
    (text_input, "is no image"),
    (free_size, "no fixed height and width; give them with --size"),
    (no_output, "no output; export it with one score for each class"),
    (unknown_output, "nothing computes the output 'nothing'"),
    (cycle, "depends on its own output; export the file again"),
    (dangling_name, "Add reads the tensor 'nowhere', which nothing computes"),
    (two_makers, "two operations compute the tensor 'y'"),
    (nan_weights, "the weights 'w' hold NaN"),
    (infinite_weights, "the weights 'w' hold infinite numbers"),
    (
        weights_of_another_network,
        r"Conv 'c' cannot work on tensors of the shapes .*\(4, 2, 3, 3\); check that the weights",
    ),
    (truncated_weights, r"the weights 'w' do not fit their shape \(4, 3, 3, 3\); export the file again"),
    (impossible_shape, "the weights 'w' do not fit their shape"),
    (text_weights, "'w' holds no numbers"),
    (wrong_reshape, "Reshape 'y' cannot work on tensors of the shapes"),
    (missing_attribute, "Cast '' lacks an input, an output or an attribute"),
    (missing_input, "Conv 'y' cannot work on tensors"),
    (large_constant, "ConstantOfShape 'c' makes a tensor of 40.0 GB, and at most 1.1 GB are allowed"),
    (many_large_constants, "the constants that the file computes take more than 1.1 GB, .* with smaller constants"),
    (large_activation, "Tile 'y' makes a tensor of 7.7 GB"),
    (long_range, "Range 'r' makes a tensor of 4000.0 GB"),
    (function_that_calls_itself, "a function of the file calls itself"),
    (functions_that_double, "stand for 1073741824 operations"),
]


@pytest.mark.parametrize(("make", "sentence"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_a_file_that_cannot_be_a_network_says_why(make: Callable[[], onnx.ModelProto], sentence: str) -> None:
    model = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GraphError, match=sentence) as caught:
        import_graph(model)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_500_000  # kB


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no model", b"\x00" * 100, b"\x08\x07"])
def test_a_file_that_is_no_model_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=r"net\.onnx .*; give the file that the ONNX export wrote"):
        import_graph(tmp_path / "net.onnx")


def test_a_file_over_two_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "net.onnx").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(GraphError, match=r"net\.onnx has 2\.1 GB"):
        read_model(tmp_path / "net.onnx")


def external(folder: Path, location: str, offset: str = "0", length: str = "432") -> Path:
    """Writes a model whose weights `w` are in another file."""
    model = convolution()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    folder.mkdir(exist_ok=True)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = external(tmp_path / "m", "w.bin", offset="8")
    (tmp_path / "m" / "w.bin").write_bytes(bytes(8) + WEIGHTS.tobytes())
    assert import_graph(path).constants["w"].numpy().tobytes() == WEIGHTS.tobytes()


@pytest.mark.parametrize("location", ["../w.bin", "{folder}/w.bin", "link.bin", "sub/../../w.bin", "link/w.bin", ""])
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    path = external(tmp_path / "m", location.format(folder=tmp_path))
    (tmp_path / "m" / "link.bin").symlink_to(tmp_path / "w.bin")
    (tmp_path / "m" / "link").symlink_to(tmp_path)
    with pytest.raises(GraphError, match="outside the model's folder; put that file beside the model"):
        read_model(path)


@pytest.mark.parametrize(
    ("offset", "length", "sentence"),
    [
        ("0", "433", "ends before the weights 'w' do; copy it again"),
        ("-4", "432", "ends before"),
        ("0", "many", "ends before"),
        ("0", "400", "do not fit their shape"),
    ],
)
def test_weights_that_are_cut_are_refused(offset: str, length: str, sentence: str, tmp_path: Path) -> None:
    path = external(tmp_path / "m", "w.bin", offset, length)
    (tmp_path / "m" / "w.bin").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(GraphError, match=sentence):
        import_graph(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"the file 'w\.bin' with the weights 'w' is missing; put it beside the model"):
        read_model(external(tmp_path / "m", "w.bin"))


def test_a_deep_network_does_not_exhaust_the_stack() -> None:
    count = 5000
    chain = [node("Relu", [f"t{i}" if i else "x"], [f"t{i + 1}"]) for i in range(count)]
    graph = import_graph(make_model(chain, outputs=(f"t{count}",)))
    assert len(graph.nodes) == count


def test_a_damaged_file_gives_a_sentence_or_a_graph() -> None:
    """Flips bytes of a small file. Nothing but `GraphError` may come of it."""
    whole = convolution().SerializeToString()
    flips = random.Random(5)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(flips.randint(1, 4)):
            damaged[flips.randrange(len(damaged))] = flips.randrange(256)
        model = onnx.ModelProto()
        try:
            model.ParseFromString(bytes(damaged))
        except Exception:  # protobuf's parser is not under test.
            continue
        try:
            import_graph(model)
        except GraphError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_weights_of_other_types_become_float32() -> None:
    for dtype in (np.float16, np.float64):
        model = convolution(w=WEIGHTS.astype(dtype))
        weights = import_graph(model).constants["w"]
        np.testing.assert_array_equal(
            weights.numpy(), numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
        )
