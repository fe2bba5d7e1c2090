"""Tests `zfserve ablate` against a fake service: what it asks, keeps, prints and writes, and how it fails."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.study_photos import small_photo
from fakes.vision_service import Failure, FakeVisionService
from PIL import Image
from zfserve import Client
from zfserve.errors import InvalidInput
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_studies.ablation.study import AblationStudy
from zfserve_studies.patience import Patience

Run = Callable[..., int]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Returns a photo of class n0 (tench) and two of the class with the label church."""
    root = tmp_path / "data"
    root.mkdir()
    for name in ("church/0.jpg", "church/1.jpg", "n0/0.jpg"):
        small_photo(root / name)
    return root


def asked(service: FakeVisionService) -> list[pb.AblateRequest]:
    return [each for each in service.study_requests if isinstance(each, pb.AblateRequest)]


def test_accuracy_is_whole_and_by_class(
    run: Run, data: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ablate", "--data", data) == OK
    shown = capsys.readouterr()
    # The fake says church for every photo, so the photo of a tench is always wrong.
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[1] == ["none", "66.7%", "62.5%"]
    assert lines[2] == ["0", "66.7%", "58.3%", "no", "class"]
    assert shown.out.endswith("3 photos. Without 3 of 3 groups the accuracy is no lower.\n")
    assert shown.err == "saved ablate.png\n"
    assert [[list(group.indices) for group in each.groups.groups] for each in asked(service)] == [[[0], [1], [2]]] * 3
    assert {metadata["x-priority"] for metadata in service.metadata} == {"bulk"}
    with Image.open(folder / "ablate.png") as picture:
        assert picture.width == 1200


def test_json_has_every_group_and_a_second_run_asks_for_no_photo_again(
    run: Run, data: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("ablate", "--data", data, "--groups", "0-1;2", "--json")
    assert run(*command) == OK
    first = json.loads(capsys.readouterr().out)
    assert first["untouched"] == {
        "accuracy": pytest.approx(2 / 3),
        "probability": pytest.approx((0.875 + 0.875 + 0.125) / 3),
        "by_class": {"church": 1, "tench": 0},
    }
    assert [each["maps"] for each in first["replaced"]] == [[0, 1], [2]]
    assert (first["layer"], first["replacement"], first["photos"]) == ("relu5", "zero", 3)
    assert run(*command) == OK
    assert json.loads(capsys.readouterr().out) == first
    assert len(asked(service)) == 3


def test_the_mean_over_the_photos_is_sent(run: Run, data: Path, service: FakeVisionService) -> None:
    assert run("ablate", "--data", data, "--maps", "1", "--replacement", "mean", "--photos", 1, "--json") == OK
    # The fake's map m has the mean 10 m for the only photo of each call.
    assert {tuple(each.values) for each in asked(service)} == {(0.0, 10.0, 20.0)}
    assert len(asked(service)) == 2


def test_bad_input_is_one_sentence(
    run: Run, data: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ablate", "--data", folder) == UNUSABLE
    assert "name a folder with a folder for each class" in capsys.readouterr().err
    assert run("ablate", "--data", data, "--maps", "0-3") == UNUSABLE
    assert "there is no map 3; the layer has the maps 0 to 2" in capsys.readouterr().err
    assert run("ablate", "--data", data, "--save", "a.gif") == UNUSABLE
    assert "name one with the suffix .png" in capsys.readouterr().err
    assert run("ablate", "--data", data, "--maps", "0", "--json") == OK
    capsys.readouterr()
    assert run("ablate", "--data", data, "--maps", "1", "--json") == FAILED
    assert 'ablate-run holds a run with maps "0", and not "1"' in capsys.readouterr().err
    small_photo(data / "church" / "2.jpg")
    assert run("ablate", "--data", data, "--maps", "0", "--json") == FAILED
    assert "the photos have changed since the run in ablate-run began" in capsys.readouterr().err
    (data / "church").rename(data / "cathedral")
    assert run("ablate", "--data", data, "--maps", "0") == UNUSABLE
    assert "the model has no class 'cathedral'; name the folder by the id or the label" in capsys.readouterr().err
    assert not Path("ablate.png").exists()


def test_an_unknown_layer_is_told_by_the_server(
    run: Run, data: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "n0").rename(data / "tench")
    service.late_failures = [Failure(grpc.StatusCode.NOT_FOUND, "there is no layer 'conv9'", "NOT_FOUND")]
    assert run("ablate", "--data", data, "--layer", "conv9") == UNUSABLE
    assert capsys.readouterr().err.startswith("error: there is no layer 'conv9'")


def test_photos_that_cannot_be_read_are_passed_over_and_other_faults_are_not(
    address: str, data: Path, service: FakeVisionService
) -> None:
    photos = sorted((data / "church").iterdir())
    broken = Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE", "image.encoded")
    other = Failure(grpc.StatusCode.INVALID_ARGUMENT, "Give a smaller grid.", "INVALID_INPUT", "grid")
    with Client(address) as client:
        study = AblationStudy(client, client.describe(), "last", Patience(lambda _: None))
        service.failures = [broken]
        assert study.find_layer(photos).layer == "relu5"
        service.failures = [other]
        with pytest.raises(InvalidInput, match="Give a smaller grid"):
            study.find_layer(photos)
        service.failures = [broken, broken]
        with pytest.raises(InvalidInput, match="Send a JPEG"):
            study.find_layer(photos)
