from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from zfserve_export.onnx_graph import check_graph
from zfserve_export.parity import network_outputs
from zfserve_export.quantize import LARGEST_WEIGHT, quantize_file
from zfserve_model.checkpoint import Checkpoint

Pixels = NDArray[np.uint8]
Exported = Callable[[str], tuple[Checkpoint, onnx.ModelProto]]


@pytest.fixture(scope="module", params=["zfnet-fig3", "alexnet"])
def quantized(
    request: pytest.FixtureRequest, exported: Exported, pixels: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Path]:
    """A network and its INT8 file, calibrated on the photos; `alexnet` has the contrast norm."""
    checkpoint, model = exported(request.param)
    folder = tmp_path_factory.mktemp("int8")
    onnx.save(model, folder / "model.onnx")
    quantize_file(folder / "model.onnx", folder / "model.int8.onnx", [pixels[:8], pixels[8:]], "cafe")
    return checkpoint, folder / "model.int8.onnx"


def by_output(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def test_every_layer_but_the_last_is_quantized_per_channel(quantized: tuple[Checkpoint, Path]) -> None:
    graph = onnx.load(quantized[1]).graph
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
        assert constants[activation.input[2]].dtype == np.uint8
        assert constants[activation.input[2]].shape == ()
    assert float_layers == ["head.fc8.weight"]


def test_weights_are_too_small_to_overflow_16_bits(quantized: tuple[Checkpoint, Path]) -> None:
    """See `LARGEST_WEIGHT`: what a CPU without VNNI adds up must fit."""
    graph = onnx.load(quantized[1]).graph
    weights = [
        numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    ]
    assert len(weights) == 7
    largest = max(int(np.abs(weight.astype(np.int32)).max()) for weight in weights)
    assert largest <= LARGEST_WEIGHT
    assert 2 * 255 * largest < 2**15


def test_integer_kernels_agree_with_the_definition(quantized: tuple[Checkpoint, Path], pixels: Pixels) -> None:
    """Fused integer kernels against the graph as it is written, Q and DQ computed one by one in float."""
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = [onnxruntime.InferenceSession(quantized[1], options) for options in (None, plain)]
    fused, written = (session.run(["probabilities"], {"pixels": pixels[:6]})[0] for session in sessions)
    np.testing.assert_allclose(fused, written, rtol=0, atol=0.02)


def test_stays_close_to_the_network(quantized: tuple[Checkpoint, Path], pixels: Pixels) -> None:
    checkpoint, file = quantized
    expected = network_outputs(checkpoint, pixels)
    probabilities, features = onnxruntime.InferenceSession(file).run(None, {"pixels": pixels})
    assert np.abs(probabilities - expected.probabilities).max() < 0.1
    assert np.abs(features - expected.features).max() < 0.1 * np.abs(expected.features).max()


def test_is_clean_onnx_with_the_promised_inputs_and_outputs(quantized: tuple[Checkpoint, Path]) -> None:
    model = onnx.load(quantized[1])
    check_graph(model)
    assert model.producer_name == "zfserve"
    assert {prop.key: prop.value for prop in model.metadata_props} == {"fingerprint": "cafe"}


def test_is_a_third_of_the_float_file_or_less(quantized: tuple[Checkpoint, Path]) -> None:
    assert quantized[1].stat().st_size < (quantized[1].parent / "model.onnx").stat().st_size / 3
