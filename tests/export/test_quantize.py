from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fakes.small_sources import SIZE, model_of, small_source, source_of
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from zfserve_export.graph_optimization import optimized
from zfserve_export.onnx_graph import check_graph
from zfserve_export.onnx_wrap import wrap
from zfserve_export.quantize import LARGEST_WEIGHT, last_layers, quantize_files
from zfserve_model.graph.errors import GraphError
from zfserve_runtime.bundle import Precision

Pixels = NDArray[np.uint8]

INT8_PRECISIONS: tuple[Precision, ...] = ("int8", "int8-symmetric")


@dataclass(frozen=True, eq=False)
class Quantized:
    """Holds a float graph, and its INT8 graphs, which are calibrated on the photos."""

    model: ModelProto
    files: dict[Precision, Path]


@pytest.fixture(scope="module")
def quantized(pixels: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    folder = tmp_path_factory.mktemp("int8")
    model = optimized(wrap(small_source()).model)
    made = Quantized(model, {name: folder / f"{name}.onnx" for name in INT8_PRECISIONS})
    quantize_files(model, made.files, iter([pixels[:8], pixels[8:]]), "cafe")
    return made


def by_output(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


@pytest.mark.parametrize(("precision", "activations"), [("int8", np.uint8), ("int8-symmetric", np.int8)])
def test_every_layer_but_the_last_is_quantized_per_channel(
    quantized: Quantized, precision: Precision, activations: type
) -> None:
    graph = onnx.load(quantized.files[precision]).graph
    makers, constants = by_output(graph), {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    float_layers = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        if node.input[1] in constants:
            float_layers.append(node.input[1])
            continue
        activation, weight = (makers[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        values, scale = constants[weight.input[0]], constants[weight.input[1]]
        assert values.dtype == np.int8
        assert scale.shape == (values.shape[0],)
        (axis,) = (attribute.i for attribute in weight.attribute if attribute.name == "axis")
        assert axis == 0
        assert constants[activation.input[2]].dtype == activations
        assert constants[activation.input[2]].shape == ()
    assert float_layers == ["8_weight"]


def test_weights_are_too_small_to_overflow_16_bits(quantized: Quantized) -> None:
    """The sums of a CPU without VNNI must fit into 16 bits (see `LARGEST_WEIGHT`)."""
    graph = onnx.load(quantized.files["int8"]).graph
    weights = [
        numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    ]
    assert len(weights) == 3
    largest = max(int(np.abs(weight.astype(np.int32)).max()) for weight in weights)
    assert largest <= LARGEST_WEIGHT
    assert 2 * 255 * largest < 2**15


def test_integer_kernels_agree_with_the_definition(quantized: Quantized, pixels: Pixels) -> None:
    """Compares fused integer kernels with the unfused graph, which computes each Q and DQ node in float."""
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = [onnxruntime.InferenceSession(quantized.files["int8"], options) for options in (None, plain)]
    fused, written = (session.run(["probabilities"], {"pixels": pixels[:6]})[0] for session in sessions)
    np.testing.assert_allclose(fused, written, rtol=0, atol=0.02)


def test_symmetric_is_what_tensorrt_takes(quantized: Quantized) -> None:
    """The graph has zero points of 0, float biases, weights of 8 bits, and roundings only before layers."""
    graph = onnx.load(quantized.files["int8-symmetric"]).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    roundings = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not constants[node.input[2]].any() for node in roundings)
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert {constants[node.input[2]].dtype for node in layers} == {np.dtype(np.float32)}
    weights = [values for values in constants.values() if values.dtype == np.int8 and values.ndim > 1]
    assert [int(np.abs(values.astype(np.int32)).max()) for values in weights] == [127] * 3
    readers = {node.op_type for node in graph.node for name in node.input if "DequantizeLinear_Output" in name}
    assert readers == {"Conv", "Gemm"}
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 3, "one for the input of each layer"


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_stays_close_to_the_network(quantized: Quantized, precision: Precision, pixels: Pixels) -> None:
    exact = onnxruntime.InferenceSession(quantized.model.SerializeToString()).run(None, {"pixels": pixels})
    rounded = onnxruntime.InferenceSession(quantized.files[precision]).run(None, {"pixels": pixels})
    assert np.abs(rounded[0] - exact[0]).max() < 0.05
    assert np.abs(rounded[1] - exact[1]).max() < 0.1 * np.abs(exact[1]).max()


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_is_clean_onnx_with_the_promised_inputs_and_outputs(quantized: Quantized, precision: Precision) -> None:
    model = onnx.load(quantized.files[precision])
    check_graph(model)
    assert model.producer_name == "zfserve"
    assert {prop.key: prop.value for prop in model.metadata_props} == {"fingerprint": "cafe"}


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_is_less_than_half_of_the_float_file(quantized: Quantized, precision: Precision) -> None:
    assert quantized.files[precision].stat().st_size < quantized.model.ByteSize() / 2


def block(*, opset: int = 18, gate: bool = False) -> ModelProto:
    """Returns a wrapped residual network: a depthwise convolution with a ReLU6, a sum and, if asked for, a gate."""
    generator = np.random.default_rng(0)
    weights = {
        "stem": generator.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "depthwise": generator.standard_normal((4, 1, 3, 3)).astype(np.float32),
        "head": generator.standard_normal((3, 4)).astype(np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], pads=[1] * 4, group=4),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["d"]),
        helper.make_node("Add", ["b", "d" if gate else "c"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "head"], ["y"], "last", transB=1),
    ]
    return optimized(wrap(source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights, opset=opset))).model)


def test_a_residual_block_stays_in_8_bits_and_a_clip_disappears(pixels: Pixels, tmp_path: Path) -> None:
    model = block()
    quantize_files(model, {"int8": tmp_path / "model.onnx"}, [pixels], "cafe")
    found = onnx.load(tmp_path / "model.onnx")
    makers = by_output(found.graph)
    assert "Clip" not in [node.op_type for node in found.graph.node]
    for node in found.graph.node:
        if node.op_type in ("Conv", "Add", "GlobalAveragePool", "Flatten"):
            assert makers[node.input[0]].op_type == "DequantizeLinear", node.name
    expected, rounded = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(["probabilities"], {"pixels": pixels})[0]
        for each in (model, found)
    )
    np.testing.assert_allclose(rounded, expected, rtol=0, atol=0.05)


def test_gates_stay_in_float(pixels: Pixels, tmp_path: Path) -> None:
    quantize_files(block(gate=True), {"int8": tmp_path / "model.onnx"}, [pixels], "cafe")
    graph = onnx.load(tmp_path / "model.onnx").graph
    quantizers = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    (gate,) = (node for node in graph.node if node.op_type == "Sigmoid")
    assert gate.output[0] not in quantizers


def test_the_last_layers_are_all_nodes_from_the_last_weights_on() -> None:
    assert set(last_layers(block())) >= {"last"}
    weights = {"w": np.ones((3, 3, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["first"], "below"),
        helper.make_node("Conv", ["first", "w"], ["map"], "classifier"),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"], "pool"),
        helper.make_node("Flatten", ["mean"], ["y"], "flatten"),
    ]
    model = wrap(source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights))).model
    assert set(last_layers(model)) == {"classifier", "pool", "flatten", "probabilities"}


def test_an_old_opset_that_cannot_be_converted_has_no_int8(pixels: Pixels, tmp_path: Path) -> None:
    model = block()
    model.opset_import[0].version = 12
    with pytest.raises(GraphError, match="in ONNX opset 12, and INT8 needs 13"):
        quantize_files(model, {"int8": tmp_path / "model.onnx"}, [pixels], "cafe")
