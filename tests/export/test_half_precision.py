import numpy as np
import onnx
import onnxruntime
import pytest
from fakes.small_sources import SIZE, model_of, small_model, small_module, small_source, source_of
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from zfserve_engines.contract import EngineOutputs
from zfserve_export.activation_range import require_half_range
from zfserve_export.graph_optimization import optimized
from zfserve_export.half_precision import LARGEST_ACTIVATION, HalfPlan, convert_to_half
from zfserve_export.onnx_edits import infer_types
from zfserve_export.onnx_graph import check_graph, describe_model
from zfserve_export.onnx_wrap import wrap
from zfserve_export.parity import ParityError, Reference
from zfserve_model.graph.errors import GraphError

Pixels = NDArray[np.uint8]
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def float_model() -> ModelProto:
    return optimized(wrap(small_source()).model)


def rectified(*middle: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None, opset: int = 18) -> ModelProto:
    """Returns the wrapped graph of a network that reads `x`, has `middle` from `x` to `m`, and pools `m`."""
    nodes = [
        *middle,
        helper.make_node("GlobalAveragePool", ["m"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    return wrap(source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights or {}, opset=opset))).model


def types_of(model: ModelProto) -> dict[str, int]:
    return {name: found.elem_type for name, found in infer_types(model).items()}


def run(model: ModelProto, pixels: Pixels) -> list[NDArray[np.float32]]:
    outputs: list[NDArray[np.float32]] = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {"pixels": pixels}
    )
    return outputs


def test_layers_compute_in_half_and_the_ends_in_float(pixels: Pixels) -> None:
    model = float_model()
    half = convert_to_half(model)
    describe_model(half, "cafe")
    check_graph(half)
    types = types_of(half)
    for node in half.graph.node:
        floats = {types[name] for name in (*node.input, *node.output) if types.get(name) in (HALF, FLOAT)}
        if node.op_type in ("Conv", "Gemm", "Relu", "MaxPool"):
            assert floats == {HALF}, node.name
        if node.op_type in ("Mul", "Sub", "Transpose", "Softmax"):
            assert floats == {FLOAT}, node.name
    assert [types[output.name] for output in half.graph.output] == [FLOAT, FLOAT]
    for found, expected in zip(run(half, pixels), run(model, pixels), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_norms_with_squares_stay_in_float(pixels: Pixels) -> None:
    middle = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("LRN", ["r"], ["n"], size=3),
        helper.make_node("Relu", ["n"], ["m"]),
    ]
    half = convert_to_half(rectified(*middle))
    check_graph(half)
    types = types_of(half)
    (norm,) = (node for node in half.graph.node if node.op_type == "LRN")
    assert {types[name] for name in (*norm.input, *norm.output)} == {FLOAT}
    assert [types[node.output[0]] for node in half.graph.node if node.op_type == "Relu"] == [HALF, HALF]
    run(half, pixels)


def test_a_tensor_is_cast_once_for_all_its_readers() -> None:
    middle = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Exp", ["r"], ["a"]),
        helper.make_node("Sqrt", ["r"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["m"]),
    ]
    half = convert_to_half(rectified(*middle))
    check_graph(half)
    casts = [node.input[0] for node in half.graph.node if node.op_type == "Cast"]
    assert len(set(casts)) == len(casts)
    assert casts.count("r") == 1


def test_sizes_of_a_resize_keep_their_type(pixels: Pixels) -> None:
    """The scales of a Resize are float32 in every graph, also where the image is float16."""
    middle = helper.make_node("Resize", ["x", "", "scales"], ["m"], mode="nearest")
    model = rectified(middle, weights={"scales": np.array([1, 1, 2, 2], np.float32)})
    half = convert_to_half(model)
    check_graph(half)
    (resize,) = (node for node in half.graph.node if node.op_type == "Resize")
    types = types_of(half)
    assert (types[resize.input[0]], types[resize.input[2]]) == (HALF, FLOAT)
    np.testing.assert_allclose(run(half, pixels)[0], run(model, pixels)[0], rtol=0, atol=1e-2)


def test_the_bounds_of_a_clip_may_be_beyond_half(pixels: Pixels) -> None:
    """Exporters write the largest float32 where there is no bound."""
    largest = np.finfo(np.float32).max
    weights = {"low": np.array(0, np.float32), "high": np.array(largest, np.float32)}
    model = rectified(helper.make_node("Clip", ["x", "low", "high"], ["m"]), weights=weights)
    np.testing.assert_allclose(run(convert_to_half(model), pixels)[0], run(model, pixels)[0], rtol=0, atol=1e-2)


@pytest.mark.parametrize(("weight", "fits"), [(65519.0, True), (65520.0, False), (-1e6, False)])
def test_a_weight_too_large_for_half_is_named(weight: float, fits: bool) -> None:
    middle = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Mul", ["r", "huge"], ["m"])]
    model = rectified(*middle, weights={"huge": np.full((1, 3, 1, 1), weight, np.float32)})
    if fits:
        (tensor,) = (entry for entry in convert_to_half(model).graph.initializer if "huge" in entry.name)
        assert numpy_helper.to_array(tensor).max() == 65504
    else:
        with pytest.raises(GraphError, match=r"huge holds a weight of .*--no-fp16"):
            convert_to_half(model)


def test_a_branch_has_no_half_form() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["kept"])],
        "body",
        [],
        [helper.make_tensor_value_info("kept", FLOAT, None)],
    )
    middle = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Less", ["largest", "limit"], ["small"]),
        helper.make_node("If", ["small"], ["m"], "choice", then_branch=body, else_branch=body),
    ]
    model = rectified(*middle, weights={"limit": np.array(1, np.float32)})
    with pytest.raises(GraphError, match=r"choice is a branch or a loop.*--no-fp16"):
        convert_to_half(model)


def reference(pixels: Pixels) -> Reference:
    none = np.empty((len(pixels), 0), np.float32)
    return Reference("noise", pixels, EngineOutputs(none, none))


@pytest.mark.parametrize(("factor", "fails"), [(1, False), (LARGEST_ACTIVATION, True)])
def test_activations_too_large_for_half_are_found(factor: float, fails: bool, pixels: Pixels) -> None:
    """ONNX Runtime's CPU kernels would hide the overflow, because the next layer scales the activations down again."""
    middle = [
        helper.make_node("Relu", ["x"], ["small"]),
        helper.make_node("Mul", ["small", "up"], ["large"], "scales_up"),
        helper.make_node("Relu", ["large"], ["r"], "rectifies"),
        helper.make_node("Mul", ["r", "down"], ["m"]),
    ]
    weights = {"up": np.array([factor], np.float32), "down": np.array([1 / factor], np.float32)}
    model = rectified(*middle, weights=weights)
    if not fails:
        require_half_range(model, reference(pixels), 3)
    else:
        with pytest.raises(ParityError, match=r"scales_up gives activations of .* for noise.*--no-fp16"):
            require_half_range(model, reference(pixels), 3)


def test_every_tensor_in_half_is_checked() -> None:
    model = float_model()
    types = types_of(convert_to_half(model))
    stored = {name.removesuffix(".float16") for name, kind in types.items() if kind == HALF}
    weights = {tensor.name for tensor in model.graph.initializer}
    assert HalfPlan(model).tensors <= stored
    assert stored - weights - HalfPlan(model).tensors == {"images"}, "the input of the first layer"


def test_optimised_graphs_have_no_operators_of_onnx_runtime(pixels: Pixels) -> None:
    """Batch norm disappears in the convolution before it."""
    module = small_module()
    model = small_model(module)
    model.graph.node[0].output[0] = "raw"
    norm = helper.make_node("BatchNormalization", ["raw", "g", "b", "mean", "var"], ["conv1"])
    model.graph.node.insert(1, norm)
    generator = np.random.default_rng(0)
    for name in ("g", "b", "mean", "var"):
        model.graph.initializer.append(numpy_helper.from_array(generator.random(8).astype(np.float32) + 0.5, name))
    wrapped = wrap(source_of(model)).model
    simple = optimized(wrapped)
    assert "BatchNormalization" in [node.op_type for node in wrapped.graph.node]
    assert "BatchNormalization" not in [node.op_type for node in simple.graph.node]
    assert {node.domain for node in simple.graph.node} == {""}
    assert [entry.domain for entry in simple.opset_import] == [""]
    np.testing.assert_allclose(run(simple, pixels)[0], run(wrapped, pixels)[0], rtol=0, atol=1e-6)
