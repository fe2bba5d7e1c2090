import pytest
from fakes.tiny_networks import onnx_classifier
from onnx import TensorProto, helper
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.onnx_interface import (
    ImageInput,
    Scores,
    find_image_input,
    find_scores,
    forget_impossible_sizes,
    infer_shapes,
)


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        (("N", 3, 8, 6), TensorProto.FLOAT, ("NCHW", "float32", 0, 8, 6)),
        ((1, 3, 8, 6), TensorProto.FLOAT, ("NCHW", "float32", 1, 8, 6)),
        ((4, 8, 6, 3), TensorProto.UINT8, ("NHWC", "uint8", 4, 8, 6)),
        (("N", 3, "H", "W"), TensorProto.FLOAT, ("NCHW", "float32", 0, None, None)),
        (("N", "H", 6, 3), TensorProto.FLOAT, ("NHWC", "float32", 0, None, 6)),
    ],
)
def test_the_input_tells_its_layout_type_batch_and_size(
    shape: tuple[int | str, ...], kind: int, expected: tuple[object, ...]
) -> None:
    found = find_image_input(onnx_classifier(shape, kind=kind), "toy")
    assert found == ImageInput("image", *expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "kind", "sentence"),
    [
        (("N", 3, 8, 8), TensorProto.FLOAT16, "the input image of toy is float16; export the network with a float32"),
        (("N", 3, 8, 8), TensorProto.DOUBLE, "the input image of toy is float64; export the network with a float32"),
        (("N", 1, 8, 8), TensorProto.FLOAT, "has shape (?, 1, 8, 8); export the network with an input of (N, 3, H, W)"),
        (("N", "C", "H", "W"), TensorProto.FLOAT, "has shape (?, ?, ?, ?); export"),
        (("N", 192), TensorProto.FLOAT, "has shape (?, 192); export"),
        (("N", 3, 8, 8), 999, "the input image of toy is of an unknown type; export"),
        (
            (10**9, 3, 8, 8),
            TensorProto.FLOAT,
            "takes only batches of 1000000000 images; export the network with a dynamic",
        ),
    ],
)
def test_an_input_that_is_no_image_is_refused(shape: tuple[int | str, ...], kind: int, sentence: str) -> None:
    with pytest.raises(SourceError) as raised:
        find_image_input(onnx_classifier(shape, kind=kind), "toy")
    assert sentence in str(raised.value)


def test_sizes_below_one_are_dynamic() -> None:
    model = onnx_classifier((0, 3, -1, 8))
    forget_impossible_sizes(model)
    assert find_image_input(model, "toy") == ImageInput("image", "NCHW", "float32", 0, None, 8)


def test_of_many_outputs_only_some_are_named() -> None:
    model = onnx_classifier()
    model.graph.output.extend(helper.make_empty_tensor_value_info(f"o{number}") for number in range(1000))
    with pytest.raises(SourceError, match=r"and 993 more with --scores$"):
        find_scores(model, "toy", "nothing")


def test_a_second_input_is_refused_and_a_stored_weight_is_no_input() -> None:
    """Files of before 2020 list their weights among the inputs."""
    model = onnx_classifier()
    model.graph.input.append(helper.make_tensor_value_info("fc.bias", TensorProto.FLOAT, [3]))
    assert find_image_input(model, "toy").name == "image"
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(SourceError, match=r"^toy has 2 inputs \(image, mask\), and one image is needed"):
        find_image_input(model, "toy")


@pytest.mark.parametrize(
    ("last", "softmax"), [(None, False), ("Softmax", True), ("LogSoftmax", False), ("Identity", False)]
)
def test_a_softmax_at_the_end_is_found(last: str | None, softmax: bool) -> None:
    """A softmax of the logarithms of probabilities gives the probabilities, so a LogSoftmax counts as logits."""
    assert find_scores(onnx_classifier(last=last), "toy") == Scores("scores", 3, softmax)


def test_a_softmax_before_a_change_of_shape_is_found() -> None:
    model = onnx_classifier(last="Softmax")
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node("Flatten", ["inner"], ["scores"]))
    assert find_scores(model, "toy").softmax


def test_scores_of_independent_classes_are_refused() -> None:
    with pytest.raises(SourceError, match=r"independent scores \(its last operation is Sigmoid\)"):
        find_scores(onnx_classifier(last="Sigmoid"), "toy")
    with pytest.raises(SourceError, match=r"independent scores \(its last operation is Gemm\)"):
        find_scores(onnx_classifier(scores_shape=("N", 1)), "toy")


def test_scores_of_one_pixel_each_are_taken() -> None:
    """Files of the ONNX model zoo have scores of shape (1, 1000, 1, 1)."""
    assert find_scores(onnx_classifier(scores_shape=("N", 3, 1, 1)), "toy").classes == 3


@pytest.mark.parametrize(
    ("kind", "shape", "sentence"),
    [
        (
            TensorProto.FLOAT,
            ("N", 4, 8, 8),
            "no scores of classes, float32 (N, K), but scores float32 (?, 4, 8, 8)",
        ),
        (TensorProto.DOUBLE, ("N", 3), "but scores float64 (?, 3)"),
        (TensorProto.INT64, ("N",), "but scores int64 (?)"),
    ],
)
def test_a_network_without_scores_is_refused(kind: int, shape: tuple[int | str, ...], sentence: str) -> None:
    model = onnx_classifier()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", kind, shape))
    with pytest.raises(SourceError) as raised:
        find_scores(model, "toy")
    assert sentence in str(raised.value)


def test_one_of_several_outputs_must_be_named_only_where_more_than_one_fits() -> None:
    model = onnx_classifier()
    model.graph.output.append(helper.make_tensor_value_info("relu_1", TensorProto.FLOAT, ["N", 4, 8, 8]))
    assert find_scores(model, "toy").name == "scores"
    model.graph.output.append(helper.make_tensor_value_info("flatten_3", TensorProto.FLOAT, ["N", 4]))
    with pytest.raises(SourceError) as raised:
        find_scores(model, "toy")
    assert str(raised.value) == (
        "several outputs of toy may be the scores: scores float32 (?, 3), flatten_3 float32 (?, 4); choose one with "
        "--scores"
    )
    assert find_scores(model, "toy", "flatten_3").classes == 4
    with pytest.raises(SourceError, match="toy has no output probs; choose one of scores, relu_1, flatten_3"):
        find_scores(model, "toy", "probs")


def test_a_size_makes_shapes_known() -> None:
    model = onnx_classifier(("N", 3, "H", "W"), scores_shape=("N", "K"))
    image = find_image_input(model, "toy")
    assert find_scores(infer_shapes(model, image, (8, 6)), "toy").classes == 3
    assert find_image_input(model, "toy").height is None, "the model itself stays as it is"
    assert find_scores(infer_shapes(model, image, None), "toy").classes == 3
