from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from zfserve_export.onnx_graph import check_graph
from zfserve_export.parity import network_outputs
from zfserve_export.quantize import LARGEST_WEIGHT, quantize_files
from zfserve_model.checkpoint import Checkpoint
from zfserve_runtime.bundle import Precision

Pixels = NDArray[np.uint8]
Exported = Callable[[str], tuple[Checkpoint, onnx.ModelProto]]


INT8_PRECISIONS: tuple[Precision, ...] = ("int8", "int8-symmetric")


@dataclass(frozen=True, eq=False)
class Quantized:
    """Holds a network, its float graph, and its INT8 graphs, which are calibrated on the photos."""

    checkpoint: Checkpoint
    source: Path
    files: dict[Precision, Path]


@pytest.fixture(scope="module", params=["zfnet-fig3", "alexnet"])
def quantized(
    request: pytest.FixtureRequest, exported: Exported, pixels: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> Quantized:
    """Quantises each architecture. `alexnet` has the contrast norm."""
    checkpoint, model = exported(request.param)
    folder = tmp_path_factory.mktemp("int8")
    onnx.save(model, folder / "model.onnx")
    made = Quantized(checkpoint, folder / "model.onnx", {name: folder / f"{name}.onnx" for name in INT8_PRECISIONS})
    quantize_files(made.source, made.files, iter([pixels[:8], pixels[8:]]), "cafe")
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
    assert float_layers == ["head.fc8.weight"]


def test_weights_are_too_small_to_overflow_16_bits(quantized: Quantized) -> None:
    """The sums of a CPU without VNNI must fit into 16 bits (see `LARGEST_WEIGHT`)."""
    graph = onnx.load(quantized.files["int8"]).graph
    weights = [
        numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    ]
    assert len(weights) == 7
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
    assert [int(np.abs(values.astype(np.int32)).max()) for values in weights] == [127] * 7
    readers = {node.op_type for node in graph.node for name in node.input if "DequantizeLinear_Output" in name}
    assert readers == {"Conv", "Gemm"}
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 7, "one for the input of each layer"


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_stays_close_to_the_network(quantized: Quantized, precision: Precision, pixels: Pixels) -> None:
    expected = network_outputs(quantized.checkpoint, pixels)
    session = onnxruntime.InferenceSession(quantized.files[precision])
    probabilities, features = session.run(None, {"pixels": pixels})
    assert np.abs(probabilities - expected.probabilities).max() < 0.1
    assert np.abs(features - expected.features).max() < 0.1 * np.abs(expected.features).max()


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_is_clean_onnx_with_the_promised_inputs_and_outputs(quantized: Quantized, precision: Precision) -> None:
    model = onnx.load(quantized.files[precision])
    check_graph(model)
    assert model.producer_name == "zfserve"
    assert {prop.key: prop.value for prop in model.metadata_props} == {"fingerprint": "cafe"}


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_is_a_third_of_the_float_file_or_less(quantized: Quantized, precision: Precision) -> None:
    assert quantized.files[precision].stat().st_size < quantized.source.stat().st_size / 3
