from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes.tiny_networks import onnx_classifier, write_onnx
from onnx import TensorProto, numpy_helper
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.onnx_file import open_onnx
from zfserve_export.sources.source import SourceOptions
from zfserve_model.graph.errors import GraphError
from zfserve_model.preprocessing import PRESETS, Preprocessing

THREE = {"a": "ant", "b": "bee", "c": "cat"}
CAFFE = SourceOptions(labels=THREE, preprocessing=PRESETS["imagenet-caffe"])


def test_a_file_with_options_is_a_source(tmp_path: Path) -> None:
    file = write_onnx(onnx_classifier((1, 3, 8, 6), last="Softmax"), tmp_path / "my net (2).onnx")
    source = open_onnx(file, CAFFE)
    assert (source.name, source.description, source.module) == ("my-net-2", "my net (2).onnx", None)
    assert (source.input_name, source.layout, source.dtype, source.fixed_batch) == ("image", "NCHW", "float32", 1)
    assert (source.scores, source.softmax) == ("scores", True)
    assert (source.class_ids, source.labels) == (("a", "b", "c"), ("ant", "bee", "cat"))
    caffe = PRESETS["imagenet-caffe"]
    assert source.preprocessing == Preprocessing("crop", 10, caffe["mean"], caffe["std"], 8, 6, "bilinear", "bgr")


def test_any_size_must_be_told_and_a_fixed_size_must_not_be_contradicted(tmp_path: Path) -> None:
    file = write_onnx(onnx_classifier(("N", "H", "W", 3), scores_shape=("N", "K")), tmp_path / "net.onnx")
    with pytest.raises(SourceError, match=r"^net\.onnx does not say all that a bundle needs; add --size HxW$"):
        open_onnx(file, CAFFE)
    told = SourceOptions(labels=THREE, preprocessing={**PRESETS["imagenet-torch"], "height": 12, "width": 10})
    source = open_onnx(file, told)
    assert (source.layout, source.preprocessing.height, source.preprocessing.width) == ("NHWC", 12, 10)
    fixed = write_onnx(onnx_classifier(), tmp_path / "fixed.onnx")
    with pytest.raises(SourceError, match=r"fixed\.onnx is 8 x 8, and --size says 12 x 10; leave --size out"):
        open_onnx(fixed, told)


def test_a_file_that_says_nothing_asks_for_everything_at_once(tmp_path: Path) -> None:
    file = write_onnx(onnx_classifier(("N", 3, "H", "W")), tmp_path / "net.onnx")
    with pytest.raises(SourceError) as raised:
        open_onnx(file, SourceOptions())
    assert str(raised.value) == (
        "net.onnx does not say all that a bundle needs; add --size HxW, --preprocessing "
        "imagenet-torch|imagenet-tf|imagenet-caffe (or --mean R G B, --std R G B, --resize squash|crop, "
        "--interpolation bilinear|bicubic) and --labels FILE (with 3 labels, one a line)"
    )


def test_a_network_that_reads_pixels_gets_pixels(tmp_path: Path) -> None:
    file = write_onnx(onnx_classifier(("N", 8, 8, 3), kind=TensorProto.UINT8), tmp_path / "net.onnx")
    options = SourceOptions(labels=THREE, preprocessing={"resize": "squash", "interpolation": "bicubic"})
    source = open_onnx(file, options)
    assert (source.dtype, source.layout) == ("uint8", "NHWC")
    assert (source.preprocessing.mean, source.preprocessing.std) == ((0, 0, 0), (1 / 255,) * 3)
    with pytest.raises(SourceError, match=r"is uint8, so the network normalises the pixels itself; use --prep"):
        open_onnx(file, CAFFE)


def test_labels_that_do_not_fit_are_refused_with_both_numbers(tmp_path: Path) -> None:
    file = write_onnx(onnx_classifier(), tmp_path / "net.onnx")
    options = SourceOptions(labels={"a": "ant"}, preprocessing=PRESETS["imagenet-torch"])
    with pytest.raises(SourceError, match=r"^net\.onnx has 3 classes, and the number of labels is 1"):
        open_onnx(file, options)


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    model = onnx_classifier()
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    source = open_onnx(tmp_path / "net.onnx", CAFFE)
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx_classifier().graph.initializer}
    for tensor in source.model.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected[tensor.name])
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(GraphError, match=r"the file 'weights\.bin' .* is missing"):
        open_onnx(tmp_path / "net.onnx", CAFFE)
