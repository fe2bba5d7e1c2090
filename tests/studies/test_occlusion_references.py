"""Tests how the projections of an atlas come into an occlusion, and which atlases are refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.pictures import png
from fakes.vision_service import FakeVisionService
from zfserve.results import ModelIdentity
from zfserve_cli.exit_statuses import OK, UNUSABLE
from zfserve_studies.occlusion.references import AtlasReferences
from zfserve_studies.run_folder import CannotContinue

Run = Callable[..., int]

MODEL = ModelIdentity("zfnet", "3", "ab12")
ATLAS = {
    "schema": 1,
    "model": {"name": "zfnet", "version": "3", "fingerprint": "ab12"},
    "layer": "relu5",
    "maps": [
        {
            "map": 5,
            "dead": False,
            "photos": [
                {"photo": "in/a.jpg", "activation": 3.0, "projection": "tiles/a.png", "patch": None},
                {"photo": "in/b.jpg", "activation": 2.0, "projection": None, "patch": None},
                {"photo": "in/c.jpg", "activation": 1.0, "projection": "tiles/c.png", "patch": None},
            ],
        }
    ],
}


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    folder = tmp_path / "atlas"
    (folder / "tiles").mkdir(parents=True)
    for name, level in (("a", 10), ("c", 30)):
        (folder / "tiles" / f"{name}.png").write_bytes(png((level, level, level)))
    return written(folder, ATLAS)


def written(folder: Path, document: Any) -> Path:
    (folder / "atlas.json").write_text(json.dumps(document))
    return folder


def test_an_atlas_adds_the_map_in_other_photos(
    run: Run, photo: Path, folder: Path, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("occlude", photo, "--atlas", atlas, "--json", "--save", ".") == OK
    (document,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert document["references"] == [{"photo": "a.jpg", "activation": 3.0}, {"photo": "c.jpg", "activation": 1.0}]
    page = (folder / "church-occluded.html").read_text()
    assert "the same map in a.jpg, activation 3.00" in page


def test_the_photo_itself_is_no_reference(
    run: Run, photo: Path, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(json.dumps(ATLAS))
    document["maps"][0]["photos"][0]["sha256"] = hashlib.sha256(photo.read_bytes()).hexdigest()
    assert run("occlude", photo, "--atlas", written(atlas, document), "--json") == OK
    assert [each["photo"] for each in json.loads(capsys.readouterr().out)["references"]] == ["c.jpg"]


def test_another_layer_or_map_has_no_references(
    run: Run, photo: Path, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for choice in (("--layer", "conv1"), ("--map", 6)):
        assert run("occlude", photo, "--atlas", atlas, "--json", *choice) == OK
        assert "references" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("document", [{}, [], {**ATLAS, "maps": [1]}, {**ATLAS, "model": None}])
def test_a_damaged_atlas_is_refused(atlas: Path, document: Any) -> None:
    with pytest.raises(CannotContinue, match=r"atlas\.json is damaged, or of another release"):
        AtlasReferences.read(written(atlas, document), MODEL)


def test_an_atlas_of_other_weights_and_no_atlas_are_refused_before_any_photo(
    run: Run, photo: Path, atlas: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    written(atlas, {**ATLAS, "model": {"name": "birds", "version": "1", "fingerprint": "cd34"}})
    assert run("occlude", photo, "--atlas", atlas) == UNUSABLE
    assert "has other weights, of birds, and the study asks zfnet 3" in capsys.readouterr().err
    assert run("occlude", photo, "--atlas", atlas / "none") == UNUSABLE
    assert "atlas.json cannot be read: No such file or directory" in capsys.readouterr().err
    assert not service.study_requests


def test_a_missing_picture_ends_the_study(
    run: Run, photo: Path, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (atlas / "tiles" / "c.png").write_bytes(b"damaged")
    assert run("occlude", photo, "--atlas", atlas) != OK
    assert "c.png is missing or damaged; make the atlas again" in capsys.readouterr().err
