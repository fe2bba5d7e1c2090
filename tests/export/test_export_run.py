"""Runs the whole command on sources of every kind, and on files that cannot be exported."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fakes.tiny_networks import onnx_classifier, tiny_residual, write_onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from zfserve_export.export_command import add_arguments, run
from zfserve_runtime.bundle import Bundle, load_bundle

LABELS = ("--labels", "labels.txt")
TORCH = ("--preprocessing", "imagenet-torch", *LABELS)
QUICK = ("--no-fp16", "--name", "toy")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the current folder. It holds only the labels of three classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\n")
    return tmp_path


def export(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(list(arguments)))


def probabilities(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(bundle.artefact("fp32"))
    outputs = [session.run(["probabilities"], {"pixels": image[None]})[0] for image in pixels]
    return np.concatenate(outputs)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


IMAGES = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def in_torch_style(pixels: np.ndarray) -> np.ndarray:
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    return np.asarray(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2), np.float32)


def in_caffe_style(pixels: np.ndarray) -> np.ndarray:
    """Keras's mode "caffe": BGR, minus the mean of ImageNet, not scaled."""
    blue_first = pixels[..., ::-1].astype(np.float32) - np.array((103.939, 116.779, 123.68), np.float32)
    return np.asarray(blue_first.transpose(0, 3, 1, 2))


def channels_last(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(in_torch_style(pixels).transpose(0, 2, 3, 1))


RAW = ("--resize", "squash", "--interpolation", "bicubic", *LABELS)


@pytest.mark.parametrize(
    ("model", "options", "prepare", "batch"),
    [
        (onnx_classifier(), TORCH, in_torch_style, 0),
        (onnx_classifier(("N", 8, 8, 3)), TORCH, channels_last, 0),
        (onnx_classifier(("N", 8, 8, 3), kind=TensorProto.UINT8), RAW, lambda pixels: pixels, 0),
        (onnx_classifier(), ("--preprocessing", "imagenet-caffe", *LABELS), in_caffe_style, 0),
        (onnx_classifier((1, 3, 8, 8), last="Softmax", opset=9), TORCH, in_torch_style, 0),
        (onnx_classifier(("N", 3, "H", "W")), (*TORCH, "--size", "8x8"), in_torch_style, 0),
    ],
    ids=["plain", "channels last", "uint8", "caffe", "opset 9 with a fixed batch", "any size"],
)
def test_the_bundle_of_an_onnx_file_computes_what_the_file_computes(
    workplace: Path,
    model: ModelProto,
    options: tuple[str, ...],
    prepare: Callable[[np.ndarray], np.ndarray],
    batch: int,
) -> None:
    """The reference prepares the pixels by hand, and not with the code of the export."""
    write_onnx(model, workplace / "net.onnx")
    assert export("net.onnx", *options, *QUICK) == 0
    bundle = load_bundle(workplace / "models" / "toy")
    assert bundle.manifest.source == "net.onnx"
    assert [entry.label for entry in bundle.manifest.classes] == ["ant", "bee", "cat"]
    assert bundle.manifest.fixed_batch_size == batch
    session = onnxruntime.InferenceSession(model.SerializeToString())
    scores = np.concatenate([session.run(["scores"], {"image": prepare(image[None])})[0] for image in IMAGES])
    expected = scores if model.graph.node[-1].op_type == "Softmax" else softmax(scores)
    np.testing.assert_allclose(probabilities(bundle, IMAGES), expected, atol=1e-5)


def test_external_data_beside_the_file_is_taken_into_the_bundle(workplace: Path) -> None:
    model = onnx_classifier()
    onnx.save(model, workplace / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert export("net.onnx", *TORCH, *QUICK) == 0
    (workplace / "net.data").unlink()
    assert probabilities(load_bundle(workplace / "models" / "toy"), IMAGES).shape == (2, 3)


def test_a_module_of_ones_own_is_exported_and_described(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "mine_for_this_test.py").write_text("from fakes.tiny_networks import tiny_residual as build\n")
    torch.save(tiny_residual().state_dict(), workplace / "mine.pth")
    source = ("mine_for_this_test:build", "--weights", "mine.pth", "--size", "8x8", *TORCH)
    assert export(*source, "--no-fp16") == 0
    bundle = load_bundle(workplace / "models" / "mine_for_this_test")
    with torch.no_grad():
        expected = tiny_residual()(torch.from_numpy(in_torch_style(IMAGES))).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities(bundle, IMAGES), expected, atol=1e-5)
    said = capsys.readouterr().out
    assert "network      mine_for_this_test:build, fingerprint" in said
    assert "photos       8 x 8, shorter side to 10, centre cropped, bilinear" in said
    assert "classes      3: ant, bee, cat" in said
    assert f"projections  by the paper rule from {len(bundle.manifest.layers)} layers (" in said


def with_weight(value: float) -> bytes:
    model = onnx_classifier()
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[0, 0, 0, 0] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "conv.weight"))
    return bytes(model.SerializeToString())


def with_nodes(*nodes: onnx.NodeProto) -> bytes:
    model = onnx_classifier()
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def with_dangling_name() -> bytes:
    model = onnx_classifier()
    model.graph.node[1].input[0] = "nobody"
    return bytes(model.SerializeToString())


def with_cycle() -> bytes:
    model = onnx_classifier()
    model.graph.node[0].input[0] = model.graph.node[1].output[0]
    return bytes(model.SerializeToString())


def with_external_weights(location: str) -> bytes:
    model = onnx_classifier()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return bytes(model.SerializeToString())


def without_scores() -> bytes:
    model = onnx_classifier()
    model.graph.output[0].name = model.graph.node[1].output[0]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("relu_1", TensorProto.FLOAT, ["N", 4, 8, 8]))
    return bytes(model.SerializeToString())


def serialized(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b"no model", TORCH, "net.onnx is not an ONNX file"),
        (b"", TORCH, "net.onnx holds no ONNX network"),
        (serialized(onnx_classifier(opset=8)), TORCH, "export it again with operator set 9 or later"),
        (serialized(onnx_classifier(kind=TensorProto.FLOAT16)), TORCH, "is float16; export the network with a float32"),
        (serialized(onnx_classifier(kind=TensorProto.DOUBLE)), TORCH, "is float64; export the network with a float32"),
        (
            serialized(onnx_classifier(("N", 1, 8, 8))),
            TORCH,
            "has shape (?, 1, 8, 8); export the network with an",
        ),
        (serialized(onnx_classifier(last="Sigmoid")), TORCH, "gives independent scores"),
        (without_scores(), TORCH, "gives no scores of classes"),
        (with_weight(math.nan), TORCH, "hold NaN; export a network whose training did not diverge"),
        (with_dangling_name(), TORCH, "reads the tensor 'nobody', which nothing computes; export the file again"),
        (with_cycle(), TORCH, "depends on its own output; export the file again"),
        (with_external_weights("../secret"), TORCH, "outside the model's folder; put that file beside the model"),
        (with_external_weights("/etc/passwd"), TORCH, "outside the model's folder; put that file beside the model"),
        (with_external_weights("absent.data"), TORCH, "is missing; put it beside the model"),
        (serialized(onnx_classifier()), (), "net.onnx does not say all that a bundle needs; add --preprocessing"),
        (serialized(onnx_classifier()), (*TORCH, "--size", "9x9"), "and --size says 9 x 9; leave --size out"),
        (serialized(onnx_classifier()), (*TORCH, "--scores", "x"), "has no output x; choose one of scores"),
        (serialized(onnx_classifier()), (*TORCH, "--mean", "124", "117", "104"), "divide numbers for 0 to 255 by 255"),
        (serialized(onnx_classifier()), (*TORCH, "--shorter-side", "4"), "shorter_side is 4; it must be at least 8"),
        (serialized(onnx_classifier()), (*TORCH, "--pretrained"), "and net.onnx is none of them; leave them out"),
        (
            serialized(onnx_classifier()),
            (*TORCH, "--labels", "imagenet"),
            "and the number of labels is 1000",
        ),
        (serialized(onnx_classifier()), (*TORCH, "--labels", "absent"), "there is no file absent"),
        (serialized(onnx_classifier()), (*TORCH, "--photos", "absent"), "there is no folder absent"),
    ],
)
def test_a_file_that_cannot_be_exported_is_one_sentence_and_leaves_nothing(
    workplace: Path, content: bytes, options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "net.onnx").write_bytes(content)
    assert export("net.onnx", *options) == 2
    said = capsys.readouterr()
    (error,) = (line for line in said.err.splitlines() if line.startswith("error: "))
    assert sentence in error
    assert "Traceback" not in said.err + said.out
    assert sorted(entry.name for entry in workplace.iterdir()) == ["labels.txt", "net.onnx"]


@pytest.mark.parametrize("name", ["net.pt", "net.pth"])
def test_a_whole_module_in_a_pickle_is_refused(workplace: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(tiny_residual(), workplace / name)
    assert export(name) == 2
    assert "loading it could run any code; save `model.state_dict()` alone" in capsys.readouterr().err
