from pathlib import Path

import pytest
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.libraries import LIBRARIES
from zfserve_export.sources.source_path import LIBRARY_NAMES, is_code, require_source


@pytest.mark.parametrize(
    "text", ["pytorchcv:resnet18", "timm:resnet50.a1_in1k", "mine:build", "a.b.c:Net", "a.py:build"]
)
def test_code_needs_no_file(text: str) -> None:
    assert is_code(text)
    require_source(text)


def test_a_network_that_is_known_by_name_needs_no_file() -> None:
    require_source("efficientnet-lite0")
    with pytest.raises(SourceError, match=r"or efficientnet-lite0$"):
        require_source("efficientnet-lite7")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "net.pt2",
            "is an archive of torch.export, and loading it can run any code; export the module to ONNX",
        ),
        ("net.pkl", "is a pickle, and loading it can run any code"),
        ("net.bin", "is a pickle, and loading it can run any code"),
        ("net.keras", "is a model of Keras or TensorFlow; convert it to ONNX with tf2onnx"),
        ("net.h5", "is a model of Keras or TensorFlow"),
        ("saved_model", "is a model of Keras or TensorFlow"),
        ("bundle", "is a bundle already; serve it, or rewrite an old one with --upgrade"),
        ("net.txt", "is no source; give a file (.onnx, .safetensors, .pt, .pth), pytorchcv:NAME, timm:NAME"),
        ("folder.onnx", "is no source"),
        ("resnet50", "is no source"),
        ("timm:", "is no source"),
        ("absent.onnx", "there is no file"),
        ("absent.safetensors", "there is no file"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, file in (("saved_model", "saved_model.pb"), ("bundle", "manifest.json"), ("folder.onnx", "x")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    with pytest.raises(SourceError) as raised:
        require_source(name)
    assert sentence in str(raised.value)


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine:build").touch()
    assert not is_code("mine:build")


def test_every_library_is_known_before_anything_is_imported() -> None:
    assert set(LIBRARY_NAMES) == LIBRARIES.keys()


def test_a_name_that_no_file_can_have_is_one_short_sentence() -> None:
    with pytest.raises(SourceError, match=r"cannot be read: File name too long; give a file") as raised:
        require_source("a" * 5000 + ".onnx")
    assert len(str(raised.value)) < 400
