from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from zfserve_export.onnx_graph import OPSET, GraphError, check_graph, half_network
from zfserve_export.parity import network_outputs
from zfserve_model.checkpoint import Checkpoint, weights_fingerprint
from zfserve_model.networks import ARCHITECTURES
from zfserve_runtime.bundle import Bundle

Exported = Callable[[str], tuple[Checkpoint, onnx.ModelProto]]

Half = Callable[[str], onnx.ModelProto]

by_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@by_architecture
def test_is_clean_onnx(exported: Exported, architecture: str) -> None:
    _, model = exported(architecture)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.output}
    assert [(dim[0].dim_param, dim[1].dim_value) for dim in shapes.values()] == [("N", 3), ("N", 16)]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]


@by_architecture
def test_takes_raw_pixels_and_casts_them_first(exported: Exported, architecture: str) -> None:
    graph = exported(architecture)[1].graph
    (entry,) = graph.input
    assert entry.name == "pixels"
    assert entry.type.tensor_type.elem_type == TensorProto.UINT8
    dims = entry.type.tensor_type.shape.dim
    assert (dims[0].dim_param, [dim.dim_value for dim in dims[1:]]) == ("N", [224, 224, 3])
    assert [node.op_type for node in graph.node][:4] == ["Cast", "Mul", "Sub", "Transpose"]
    assert [node.op_type for node in graph.node if "pixels" in node.input] == ["Cast"]


@by_architecture
def test_computes_what_the_network_computes_at_any_batch_size(
    exported: Exported, architecture: str, pixels: NDArray[np.uint8]
) -> None:
    checkpoint, model = exported(architecture)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = network_outputs(checkpoint, pixels[:5])
    for count in (1, 2, 5):
        probabilities, features = session.run(["probabilities", "features"], {"pixels": pixels[:count]})
        np.testing.assert_allclose(probabilities, expected.probabilities[:count], rtol=0, atol=1e-5)
        scale = np.abs(expected.features).max()
        np.testing.assert_allclose(features, expected.features[:count], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("architecture", "norms"), [("zfnet-fig3", 0), ("alexnet", 2)])
def test_contrast_norm_is_one_node(exported: Exported, architecture: str, norms: int) -> None:
    """The graph has no other trace of the norm; its other nodes are the layers of the table."""
    kinds = [node.op_type for node in exported(architecture)[1].graph.node]
    assert kinds.count("LRN") == norms
    layers = {"Conv": 5, "Relu": 7, "MaxPool": 3, "Gemm": 3, "Softmax": 1, "Reshape": 1}
    assert {kind: kinds.count(kind) for kind in layers} == layers
    assert len(kinds) == 4 + sum(layers.values()) + norms


def test_says_who_made_it_and_from_which_weights(exported: Exported) -> None:
    checkpoint, model = exported("zfnet-fig3")
    assert model.producer_name == "zfserve"
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "fingerprint": weights_fingerprint(checkpoint.network)
    }


def test_the_same_weights_give_the_same_bytes(exported: Exported, bundle: Bundle) -> None:
    """Compares with the bundle's graph, which was exported from the same weights at another time."""
    model = exported("zfnet-fig3")[1].SerializeToString(deterministic=True)
    assert onnx.load(bundle.artefact("fp32")).SerializeToString(deterministic=True) == model
    assert b"/zfserve_export/" not in model, "a path of this machine"


@pytest.mark.parametrize("architecture", ["zfnet-fig3", "alexnet"])
def test_half_weights_give_a_half_graph_with_float_ends(
    exported: Exported, half: Half, architecture: str, pixels: NDArray[np.uint8]
) -> None:
    """Layers compute in float16; normalisation, contrast norm (which `alexnet` has here) and softmax in float32."""
    checkpoint, model = exported(architecture)[0], half(architecture)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for node in inferred.node:
        if node.op_type in ("Conv", "Gemm", "Relu", "MaxPool"):
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}, node.name
        if node.op_type in ("Mul", "Sub", "LRN", "Softmax"):
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.name
    assert [types[output.name] for output in inferred.output] == [TensorProto.FLOAT] * 2
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = network_outputs(checkpoint, pixels[:4])
    probabilities, features = session.run(["probabilities", "features"], {"pixels": pixels[:4]})
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=0, atol=5e-3)
    np.testing.assert_allclose(features, expected.features, rtol=0, atol=5e-3 * np.abs(expected.features).max())


def test_half_weights_are_a_copy(fresh_checkpoint: Checkpoint) -> None:
    network = fresh_checkpoint.network
    assert {tensor.dtype for tensor in half_network(network).state_dict().values()} == {torch.float16}
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("weight", [65520.0, -1e6])
def test_a_weight_too_large_for_half_is_named(fresh_checkpoint: Checkpoint, weight: float) -> None:
    weights = fresh_checkpoint.network.get_parameter("trunk.conv4.bias")
    with torch.no_grad():
        weights[3] = 65504
        half_network(fresh_checkpoint.network)
        weights[3] = weight
    with pytest.raises(GraphError, match=r"trunk\.conv4\.bias holds a weight of .*e\+0.*with --no-fp16"):
        half_network(fresh_checkpoint.network)


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


def test_check_refuses_another_first_node() -> None:
    turn = helper.make_node("Transpose", ["pixels"], ["turned"], perm=[0, 2, 1, 3])
    cast = helper.make_node("Cast", ["turned"], ["probabilities"], to=TensorProto.FLOAT)
    with pytest.raises(GraphError, match="read by exactly one Cast, but is read by Transpose"):
        check_graph(tiny_graph(turn, cast, COPY))


def test_check_refuses_other_outputs() -> None:
    with pytest.raises(GraphError, match="outputs are probabilities instead of"):
        check_graph(tiny_graph(CAST, outputs=("probabilities",)))


def test_check_refuses_invalid_onnx() -> None:
    with pytest.raises(GraphError, match="not valid ONNX"):
        check_graph(tiny_graph(COPY, CAST))
