"""Tests `zfserve correspondence` against a fake service: what it asks, prints and writes, and how it fails."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.study_photos import small_photo
from fakes.vision_service import Failure, FakeVisionService
from PIL import Image
from zfserve_cli.exit_statuses import OK, UNUSABLE
from zfserve_protos.v1 import zfserve_pb2 as pb

Run = Callable[..., int]

PARTS = {"object": [0, 0, 60, 60], "nose": [1, 2, 11, 12]}


@pytest.fixture
def two(photo: Path) -> list[Path]:
    """Returns two photos."""
    return [photo, small_photo(photo.with_name("second.jpg"))]


@pytest.fixture
def parts(folder: Path) -> Path:
    """Returns the parts of two photos."""
    file = folder / "parts.json"
    file.write_text(json.dumps({"church.jpg": PARTS, "second.jpg": PARTS}))
    return file


def test_it_asks_for_whole_and_masked_photos_and_draws_a_table(
    run: Run, two: list[Path], parts: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("correspondence", *two, "--parts", parts, "--controls", 2) == OK
    shown = capsys.readouterr()
    # The fake answers every photo alike, so nothing changes and all signs agree.
    assert shown.out.splitlines()[1].split() == ["nose", "0.000", "0.000"]
    assert "random" in shown.out
    assert "relu5: 0 of 1 parts change the features more alike than random boxes do. In the paper all do." in shown.out
    assert shown.err == "saved correspondence.png\n"
    requests = [each for each in service.study_requests if isinstance(each, pb.ActivationsRequest)]
    assert len(requests) == 2 * (1 + 1 + 2)
    assert {tuple(each.layers) for each in requests} == {("last", "features")}
    assert {each.form for each in requests} == {pb.ACTIVATION_FORM_MAPS}
    assert {metadata["x-priority"] for metadata in service.metadata} == {"bulk"}
    with Image.open("correspondence.png") as picture:
        assert picture.width >= 800


def test_json_has_every_number_and_writes_no_file(
    run: Run, two: list[Path], parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("correspondence", *two, "--parts", parts, "--layers", "conv5", "--controls", 3, "--json") == OK
    document = json.loads(capsys.readouterr().out)
    assert document["layers"] == {
        "conv5": {
            "nose": {"mean": 0, "deviation": None, "pairs": 1},
            "random": {"mean": 0, "deviation": 0, "pairs": 3},
        }
    }
    assert document["computation"] == {"precision": "int8", "engine": "openvino"}
    assert (document["controls"], document["seed"]) == (3, 0)
    assert not Path("correspondence.png").exists()


def test_a_network_without_features_has_the_last_layer_only(
    run: Run, two: list[Path], parts: Path, service: FakeVisionService
) -> None:
    service.description.feature_width = 0
    assert run("correspondence", *two, "--parts", parts, "--controls", 0, "--json") == OK
    assert {tuple(each.layers) for each in service.study_requests if isinstance(each, pb.ActivationsRequest)} == {
        ("last",)
    }


def test_bad_input_is_one_sentence(
    run: Run, two: list[Path], parts: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("correspondence", two[0], "--parts", parts) == UNUSABLE
    assert capsys.readouterr().err == "error: one photo has no pairs; name at least two photos\n"
    parts.write_text(json.dumps({"church.jpg": PARTS, "second.jpg": PARTS | {"nose": [60, 60, 70, 64]}}))
    assert run("correspondence", *two, "--parts", parts) == UNUSABLE
    assert "'nose' of second.jpg lies outside the photo, which has 64 x 64 pixels" in capsys.readouterr().err
    two[1].write_text("no photo")
    assert run("correspondence", *two, "--parts", parts) == UNUSABLE
    assert "second.jpg cannot be read" in capsys.readouterr().err
    assert not service.study_requests


def test_an_unknown_layer_is_told_by_the_server(
    run: Run, two: list[Path], parts: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = Failure(grpc.StatusCode.NOT_FOUND, "there is no layer 'conv9'; choose conv1 or last", "NOT_FOUND")
    service.late_failures = [failure]
    assert run("correspondence", *two, "--parts", parts, "--layers", "conv9") == UNUSABLE
    assert capsys.readouterr().err.startswith("error: there is no layer 'conv9'; choose conv1 or last")


def test_a_restart_in_the_middle_is_waited_for(
    run: Run, two: list[Path], parts: Path, service: FakeVisionService
) -> None:
    service.late_failures = [Failure(grpc.StatusCode.UNAVAILABLE, "stopping", "SHUTTING_DOWN", pushback_ms=-1)]
    assert run("correspondence", *two, "--parts", parts, "--controls", 1, "--json") == OK
    assert len(service.study_requests) == 2 * 3 + 1
