from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fakes.small_sources import SIZE, model_of, small_model, small_module, small_source, source_of
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from zfserve_export.onnx_graph import check_graph, describe_model
from zfserve_export.onnx_wrap import WrappedNetwork, wrap
from zfserve_export.parity import normalised, softmax, source_scores
from zfserve_export.sources.source import Source
from zfserve_model.graph.errors import GraphError
from zfserve_model.preprocessing import PRESETS, Preprocessing

Pixels = NDArray[np.uint8]
RAW = Preprocessing(height=SIZE, width=SIZE, mean=PRESETS["none"]["mean"], std=PRESETS["none"]["std"])


def run(wrapped: WrappedNetwork, pixels: Pixels) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(wrapped.model.SerializeToString())
    outputs: list[NDArray[np.float32]] = session.run(None, {"pixels": pixels})
    return outputs


def operations(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_wrapped_network_takes_pixels_and_keeps_its_nodes(pixels: Pixels) -> None:
    source = small_source()
    wrapped = wrap(source)
    check_graph(wrapped.model)
    kinds = ["Conv", "Relu", "MaxPool", "Conv", "Relu", "Reshape", "Gemm", "Relu", "Gemm"]
    assert operations(wrapped.model) == ["Cast", "Mul", "Sub", "Transpose", *kinds, "Softmax"]
    assert wrapped.model.graph.node[3].output == ["images"]
    assert (wrapped.logits, wrapped.last_layer, wrapped.feature_width, wrapped.fixed_batch_size) == ("y", "last", 16, 0)
    (entry,) = wrapped.model.graph.input
    assert [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] == ["N", SIZE, SIZE, 3]
    for count in (1, 2, 5):
        probabilities, features = run(wrapped, pixels[:count])
        expected = softmax(source_scores(source, pixels[:count]))
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)
        (images,) = normalised(pixels[:count], source.preprocessing, count)
        hidden = small_module()[:8](torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(features, hidden, rtol=0, atol=1e-4)


def channels_last(element: int = TensorProto.FLOAT) -> ModelProto:
    """Returns a network on `x` (N, SIZE, SIZE, 3): the means of the channels, in the order of the input."""
    first = [helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT)] if element != TensorProto.FLOAT else []
    nodes = [*first, helper.make_node("ReduceMean", ["cast" if first else "x", "axes"], ["y"], keepdims=0)]
    return model_of(nodes, ["N", SIZE, SIZE, 3], ["N", 3], {"axes": np.array([1, 2], np.int64)}, element=element)


@pytest.mark.parametrize(
    ("order", "element", "added"),
    [
        ("rgb", "float32", ["Transpose"]),
        ("bgr", "float32", ["Split", "Concat", "Transpose"]),
        ("bgr", "uint8", ["Split", "Concat", "Transpose", "Cast"]),
        ("rgb", "uint8", ["Transpose", "Cast"]),
    ],
)
def test_the_adapter_gives_the_layout_order_and_type_of_the_network(
    order: Any, element: Any, added: list[str], pixels: Pixels
) -> None:
    """The network's scores are the means of the raw channels, so the order shows in them."""
    preprocessing = Preprocessing(height=SIZE, width=SIZE, mean=RAW.mean, std=RAW.std, channel_order=order)
    model = channels_last(TensorProto.UINT8 if element == "uint8" else TensorProto.FLOAT)
    source = source_of(model, layout="NHWC", dtype=element, preprocessing=preprocessing)
    wrapped = wrap(source)
    assert operations(wrapped.model)[4 : 4 + len(added)] == added
    types = [helper.get_node_attr_value(node, "to") for node in wrapped.model.graph.node if node.op_type == "Cast"]
    assert set(types) == {TensorProto.FLOAT}, "TensorRT refuses a Cast to uint8 inside of a network"
    (probabilities,) = run(wrapped, pixels)
    means = pixels.astype(np.float32).mean(axis=(1, 2))
    expected = softmax(means[:, ::-1] if order == "bgr" else means)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(source_scores(source, pixels), means[:, ::-1] if order == "bgr" else means, rtol=1e-5)
    assert (wrapped.feature_width, wrapped.last_layer) == (0, None)


def test_a_split_has_the_form_of_an_old_opset(pixels: Pixels) -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["mean"]), helper.make_node("Flatten", ["mean"], ["y"])]
    model = model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], {}, opset=12)
    model.opset_import[0].version = 12
    preprocessing = Preprocessing(height=SIZE, width=SIZE, channel_order="bgr")
    source = source_of(model, preprocessing=preprocessing)
    (probabilities,) = run(wrap(source), pixels)
    np.testing.assert_allclose(probabilities, softmax(source_scores(source, pixels)), rtol=0, atol=1e-6)


def test_a_batch_that_a_reshape_names_becomes_dynamic(pixels: Pixels) -> None:
    source = small_source(model=small_model(small_module(), 1, flatten_to=1), fixed_batch=1)
    wrapped = wrap(source)
    assert wrapped.fixed_batch_size == 0
    np.testing.assert_allclose(run(wrapped, pixels)[0], softmax(source_scores(source, pixels)), rtol=0, atol=1e-6)


def mixed(batch: int) -> ModelProto:
    """Returns a network that adds the first image to every image, so the batch size changes its results."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "zero"], ["first"]),
        helper.make_node("Add", ["x", "first"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    weights = {"zero": np.array([0], np.int64), "one": np.array([1], np.int64)}
    return model_of(nodes, [batch, 3, SIZE, SIZE], [batch, 3], weights)


def test_a_batch_that_cannot_be_dynamic_stays_one_image(pixels: Pixels) -> None:
    wrapped = wrap(source_of(mixed(1)))
    check_graph(wrapped.model)
    assert wrapped.fixed_batch_size == 1
    (entry,) = wrapped.model.graph.input
    assert entry.type.tensor_type.shape.dim[0].dim_value == 1
    run(wrapped, pixels[:1])


def test_a_fixed_batch_of_several_images_is_refused() -> None:
    with pytest.raises(GraphError, match=r"takes only batches of 2 images, .*; export it to ONNX with a dynamic batch"):
        wrap(source_of(mixed(2)))


def test_a_network_that_onnx_runtime_cannot_run_is_refused() -> None:
    model = model_of([helper.make_node("Unheard", ["x"], ["y"])], ["N", 3, SIZE, SIZE], ["N", 3], {})
    with pytest.raises(GraphError, match=r"ONNX Runtime cannot load the network: .*Unheard"):
        wrap(source_of(model))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    module = small_module()
    module.get_parameter("8.bias")[1] = value
    with pytest.raises(GraphError, match="scores are not numbers; look for NaN"):
        wrap(small_source(model=small_model(module)))


def test_another_number_of_labels_is_refused() -> None:
    with pytest.raises(GraphError, match="has 3 scores, and there are 2 labels"):
        wrap(small_source(labels=("one", "two"), class_ids=("1", "2")))


@pytest.mark.parametrize("name", ["pixels", "features", "probabilities", "images", "pixels.scale"])
def test_names_of_the_user_do_not_clash_with_ours(name: str, pixels: Pixels) -> None:
    source = small_source(model=small_model(small_module(), name=name))
    wrapped = wrap(source)
    check_graph(wrapped.model)
    assert f"network.{name}" in {output for node in wrapped.model.graph.node for output in node.output}
    np.testing.assert_allclose(run(wrapped, pixels)[0], softmax(source_scores(source, pixels)), rtol=0, atol=1e-6)


def with_softmax(source: Source) -> Source:
    model = ModelProto()
    model.CopyFrom(source.model)
    model.graph.node.append(helper.make_node("Softmax", ["y"], ["p"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 3]))
    return source_of(model, softmax=True)


def test_a_source_that_ends_in_probabilities_gets_no_second_softmax(source: Source, pixels: Pixels) -> None:
    wrapped = wrap(with_softmax(source))
    assert operations(wrapped.model).count("Softmax") == 1
    assert (wrapped.logits, wrapped.feature_width) == ("y", 16)
    np.testing.assert_allclose(run(wrapped, pixels)[0], run(wrap(source), pixels)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_scores_of_a_convolution_become_a_vector(opset: int, pixels: Pixels) -> None:
    """A convolution on a map of 1 x 1 is the last linear layer, so its input are the features."""
    weights = {"w": np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)}
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Conv", ["mean", "w"], ["y"], "last"),
    ]
    source = source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3, 1, 1], weights, opset=opset))
    wrapped = wrap(source)
    check_graph(wrapped.model)
    assert (wrapped.logits, wrapped.last_layer, wrapped.feature_width) == ("scores.flat", "last", 3)
    assert wrapped.model.opset_import[0].version == 18
    probabilities, features = run(wrapped, pixels)
    np.testing.assert_allclose(probabilities, softmax(source_scores(source, pixels)), rtol=0, atol=1e-6)
    (images,) = normalised(pixels, source.preprocessing, len(pixels))
    np.testing.assert_allclose(features, images.mean(axis=(2, 3)), rtol=0, atol=1e-5)


def test_scores_that_are_pooled_after_the_last_convolution_have_no_features(pixels: Pixels) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    wrapped = wrap(source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights)))
    check_graph(wrapped.model)
    assert (wrapped.feature_width, wrapped.last_layer) == (0, None)
    assert [output.name for output in wrapped.model.graph.output] == ["probabilities"]


def test_paths_of_modules_stay_and_everything_else_about_the_origin_goes() -> None:
    model = small_model(small_module())
    model.producer_name, model.doc_string = "someone", "/home/someone"
    node = model.graph.node[0]
    node.doc_string = "/home/someone/net.py"
    for key in ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"):
        node.metadata_props.add(key=key, value="['', 'stem']" if "scopes" in key else "/home/someone/net.py")
    wrapped = wrap(small_source(model=model)).model
    describe_model(wrapped, "cafe")
    (conv,) = (node for node in wrapped.graph.node if node.name == "first")
    assert {entry.key: entry.value for entry in conv.metadata_props} == {"pkg.torch.onnx.name_scopes": "['', 'stem']"}
    assert b"someone" not in wrapped.SerializeToString()
    assert wrapped.producer_name == "zfserve"


def test_the_same_source_gives_the_same_bytes() -> None:
    first, second = (wrap(small_source()).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_every_node_has_a_name_of_its_own() -> None:
    names = [node.name for node in wrap(small_source()).model.graph.node]
    assert len(set(names)) == len(names)
    assert "" not in names
    assert {"first", "last"} <= set(names)


def test_a_second_input_is_refused() -> None:
    model = small_model(small_module())
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    with pytest.raises(GraphError, match="more inputs than its image: scale"):
        wrap(small_source(model=model))


def test_weights_that_are_listed_as_inputs_stay_weights(pixels: Pixels) -> None:
    """Files of IR version 3 list them so."""
    model = small_model(small_module())
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    wrapped = wrap(small_source(model=model))
    check_graph(wrapped.model)
    assert [value.name for value in wrapped.model.graph.input] == ["pixels"]
    run(wrapped, pixels)


def test_the_features_of_a_network_in_half_precision_are_float32(pixels: Pixels) -> None:
    weights = {
        "conv": np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float16),
        "last": np.random.default_rng(2).standard_normal((4, 3)).astype(np.float16),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "conv"], ["c"]),
        helper.make_node("GlobalMaxPool", ["c"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "last"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
    ]
    wrapped = wrap(source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights)))
    check_graph(wrapped.model)
    probabilities, features = run(wrapped, pixels[:2])
    assert features.dtype == np.float32
    assert (features.shape, probabilities.shape) == ((2, 4), (2, 3))
