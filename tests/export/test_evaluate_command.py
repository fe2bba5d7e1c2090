import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from fakes.tiny_networks import onnx_classifier, write_onnx
from PIL import Image
from zfserve_export import evaluate_command
from zfserve_export.confusion_picture import draw_confusion
from zfserve_export.evaluation import score
from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import Bundle, Precision

ColourBundle = Callable[..., Bundle]


def evaluate(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    evaluate_command.add_arguments(parser)
    return evaluate_command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Writes two red photos, a green one, and a blue one in the folder of green."""
    for name, colour in {"c-red/1": "red", "c-red/2": "#900", "c-green/1": "lime", "c-green/2": "blue"}.items():
        file = tmp_path / "photos" / "val" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), colour).save(file)
    return tmp_path / "photos"


def test_a_bundle(
    colour_bundle: ColourBundle, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = colour_bundle()
    figures, picture = tmp_path / "new/score.json", tmp_path / "new/confusion.png"
    status = evaluate(bundle.folder, "--data", photos, "--batch-size", "3", "--json", figures, "--confusion", picture)
    printed = capsys.readouterr().out
    assert status == 0
    assert "colours 1, fp32 by onnx-cpu" in printed
    assert "75.00%" in printed
    assert "green taken for blue" in printed
    written = json.loads(figures.read_text())
    assert (written["count"], written["top1"], written["top5"]) == (4, 0.75, 1.0)
    assert [entry["top1"] for entry in written["classes"]] == [1.0, 0.5, None]
    assert written["confusion"] == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    with Image.open(picture) as image:
        assert min(image.size) > 300


def test_a_checkpoint(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = build_network(NetworkSpec("zfnet-fig3", classes=2, hidden_width=4), torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = network.head.get_submodule("fc8")
        assert isinstance(last, torch.nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 1.0]))
    file = tmp_path / "weights.safetensors"
    save_checkpoint(Checkpoint(network, ("c-green", "c-red"), ("green", "red"), Preprocessing()), file)
    assert evaluate(file, "--data", photos, "--json", tmp_path / "score.json") == 0
    assert "PyTorch" in capsys.readouterr().out
    assert json.loads((tmp_path / "score.json").read_text())["confusion"] == [[0, 2], [0, 2]]


@pytest.mark.parametrize("precision", get_args(Precision))
def test_every_graph_of_a_bundle(
    bundle: Bundle, photo_folder: Path, precision: Precision, capsys: pytest.CaptureFixture[str]
) -> None:
    """`zfserve evaluate` prints the figures that export wrote into the manifest."""
    assert evaluate(bundle.folder, "--data", photo_folder, "--precision", precision, "--threads", "1") == 0
    (figures,) = (entry for entry in bundle.manifest.accuracy if entry.precision == precision)
    printed = capsys.readouterr().out
    assert f"tiny 1, {precision}" in printed
    assert f"top-1 {figures.top1:.2%}" in printed


def test_another_engine(colour_bundle: ColourBundle, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = colour_bundle()
    assert evaluate(bundle.folder, "--data", photos, "--engine", "openvino") == 0
    printed = capsys.readouterr().out
    assert "colours 1, fp32 by openvino" in printed
    assert "75.00%" in printed
    assert evaluate(bundle.folder, "--data", photos, "--engine", "openvino-bf16", "--precision", "int8") == 2
    assert "it runs only the fp32 graph" in capsys.readouterr().err


def test_a_bare_state_dict(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`zfserve evaluate` reads a bare state_dict as export does. The labels name its outputs."""
    network = build_network(NetworkSpec("zfnet-fig3", classes=2, hidden_width=4), torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    (tmp_path / "labels.tsv").write_text("c-green\tgreen\nc-red\tred\n")
    assert evaluate(tmp_path / "bare.pt", "--data", photos, "--labels", tmp_path / "labels.tsv") == 0
    assert "bare.pt, PyTorch fp32" in capsys.readouterr().out
    assert evaluate(tmp_path / "bare.pt", "--data", photos) == 2
    assert "folders for c-green, c-red, but the model has no such class" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_used_is_said_without_a_traceback(
    colour_bundle: ColourBundle, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = colour_bundle()

    def complaint(*words: str | Path) -> str:
        assert evaluate(*words) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "there is no bundle" in complaint(tmp_path / "nowhere", "--data", photos)
    assert "there is no file" in complaint(tmp_path / "nowhere.safetensors", "--data", photos)
    assert "no int8 artefact" in complaint(bundle.folder, "--data", photos, "--precision", "int8")
    assert "there is no folder" in complaint(bundle.folder, "--data", tmp_path / "nowhere")
    for words in (("--confusion", tmp_path / "c.foo"), ("--json", tmp_path)):
        assert "the result cannot be written" in complaint(bundle.folder, "--data", photos, *words)
    (photos / "val" / "c-mauve").mkdir()
    assert "folders for c-mauve, but the model has no such class" in complaint(bundle.folder, "--data", photos)
    assert "--batch-size must be at least 1" in complaint(bundle.folder, "--data", photos, "--batch-size", "0")


def test_a_picture_of_a_thousand_classes_stays_small(tmp_path: Path) -> None:
    found = score(np.eye(1000, dtype=np.float32), np.arange(1000))
    draw_confusion(found, [str(index) for index in range(1000)], "many", tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as image:
        assert max(image.size) < 2000


def test_an_onnx_file_is_evaluated_before_its_export(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options are those of the export, and so are the sentences."""
    file = write_onnx(onnx_classifier(last="Softmax"), tmp_path / "net.onnx")
    (tmp_path / "labels.txt").write_text("c-green\nc-red\nc-blue\n")
    words = (file, "--data", photos, "--labels", tmp_path / "labels.txt")
    assert evaluate(*words, "--preprocessing", "imagenet-torch", "--json", tmp_path / "score.json") == 0
    assert "net.onnx, ONNX fp32" in capsys.readouterr().out
    assert json.loads((tmp_path / "score.json").read_text())["count"] == 4
    assert evaluate(*words) == 2
    assert "net.onnx does not say all that a bundle needs; add --prepro" in " ".join(capsys.readouterr().err.split())
