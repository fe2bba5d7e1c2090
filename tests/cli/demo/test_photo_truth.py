"""Tests the truth about photos, and the verdicts on the network's answers."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from zfserve.results import Classification, ClassScore, ImageReference, ModelIdentity, Timings
from zfserve_cli.demo.photo_truth import Truth, judge, read_truth
from zfserve_model.checkpoint import load_checkpoint, weights_fingerprint

ROOT = Path(__file__).parents[3]
LABELS = ("tench", "church", "golf ball")
ANSWER = Classification(
    classes=tuple(ClassScore(label, "n", 0, share) for label, share in (("church", 0.5), ("tench", 0.25))),
    model=ModelIdentity("zfnet", "1", "ab12"),
    image_reference=ImageReference(""),
    features=(),
    timings=Timings(1, 1, 1, 1),
)


@pytest.mark.parametrize(
    ("truth", "word", "sentence"),
    [
        (Truth("church"), "right", "Right."),
        (Truth("Church"), "right", "Right."),
        (Truth("kirk", also=("minster", "church")), "right", "Right."),
        (
            Truth("fish", also=("tench",)),
            "wrong",
            "Wrong: the photo shows “fish”, which was number 2 with 25.0%.",
        ),
        (Truth("tench"), "wrong", "Wrong: the photo shows “tench”, which was number 2 with 25.0%."),
        (Truth("golf ball"), "wrong", "Wrong: the photo shows “golf ball”, which is not among its first 2."),
        (
            Truth("chapel", nearest="church"),
            "near",
            "Nearly right: the photo shows “chapel”, none of its 3 classes, and the network chose the nearest class.",
        ),
        (
            Truth("perch", nearest="tench"),
            "wrong",
            "Wrong: the photo shows “perch”, none of its 3 classes; the nearest class, tench, was number 2 with 25.0%.",
        ),
        (Truth("pagoda"), "wrong", "Wrong, as any answer would be: the photo shows “pagoda”, none of its 3 classes."),
        (
            Truth("trumpet", nearest="French horn"),
            "wrong",
            "Wrong, as any answer would be: the photo shows “trumpet”, none of its 3 classes.",
        ),
    ],
)
def test_verdicts(truth: Truth, word: str, sentence: str) -> None:
    verdict = judge(truth, ANSWER, LABELS)
    assert (verdict.word, verdict.sentence) == (word, sentence)


def test_the_why_appears_only_for_the_weights_that_it_describes() -> None:
    truth = Truth("tench", why="It saw a pond.", weights=("ab12", "ef56"))
    assert judge(truth, ANSWER, LABELS).why == "It saw a pond."
    assert judge(replace(truth, weights=("cd34",)), ANSWER, LABELS).why == ""


def test_there_is_no_truth_without_a_file_or_an_entry(tmp_path: Path) -> None:
    assert read_truth(tmp_path / "a.jpg") is None
    (tmp_path / "truth.toml").write_text('["b.jpg"]\nshows = "church"\n')
    assert read_truth(tmp_path / "a.jpg") is None
    assert read_truth(tmp_path / "b.jpg") == Truth("church")


@pytest.mark.parametrize("text", ["[", '["a.jpg"]\ncolour = "red"\n', '["a.jpg"]\n', '"a.jpg" = 1\n'])
def test_the_error_names_a_malformed_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "truth.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "truth.toml"))):
        read_truth(tmp_path / "a.jpg")


@pytest.mark.parametrize("photo", sorted((ROOT / "samples").glob("*.jpg")), ids=lambda photo: photo.name)
def test_the_truth_of_every_sample_agrees_with_its_attribution(photo: Path) -> None:
    truth = read_truth(photo)
    assert truth
    row = next(line for line in (ROOT / "samples/ATTRIBUTION.md").read_text().splitlines() if f"`{photo.name}`" in line)
    shows, in_class = row.split(" | ")[1:3]
    assert truth.shows in shows or truth.shows in in_class
    if truth.nearest:
        assert in_class == f"none ({truth.nearest} is the nearest)"
    else:
        assert in_class in (truth.shows, "none")


def test_truth_toml_describes_the_samples_and_the_shipped_weights() -> None:
    truths = tomllib.loads((ROOT / "samples/truth.toml").read_text())
    assert set(truths) == {"weights", *(photo.name for photo in (ROOT / "samples").glob("*.jpg"))}
    # If the weights differ, look at the projections of the shipped weights again, and write down what they show.
    shipped = weights_fingerprint(load_checkpoint(ROOT / "weights/zfnet-imagenette.safetensors").network)
    assert shipped in truths["weights"]
