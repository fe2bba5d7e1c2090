from pathlib import Path

import pytest
from fakes.tiny_networks import onnx_classifier, write_onnx
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.opening import open_source
from zfserve_export.sources.source import SourceOptions
from zfserve_model.preprocessing import PRESETS

OPTIONS = SourceOptions(labels={"a": "ant", "b": "bee", "c": "cat"}, preprocessing=PRESETS["imagenet-torch"])


def test_an_onnx_file_is_opened(tmp_path: Path) -> None:
    file = write_onnx(onnx_classifier(), tmp_path / "net.onnx")
    assert open_source(str(file), OPTIONS).name == "net"


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("absent.onnx", OPTIONS, "there is no file absent.onnx"),
        ("resnet50", OPTIONS, "resnet50 is no source; give a file"),
        ("absent_module:build", OPTIONS, "there is no module absent_module"),
        ("pytorchcv:resnet18", OPTIONS, "names a network without weights"),
        ("net.onnx", SourceOptions(pretrained=True), "and net.onnx is none of them; leave them out"),
        ("net.onnx", SourceOptions(weights=Path("x.pth")), "and net.onnx is none of them; leave them out"),
    ],
)
def test_a_text_that_names_no_source_is_one_sentence(text: str, options: SourceOptions, sentence: str) -> None:
    with pytest.raises(SourceError) as raised:
        open_source(text, options)
    assert sentence in str(raised.value)
