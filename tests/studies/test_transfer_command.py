"""Tests `zfserve transfer` against a fake service: what it asks, keeps, prints and writes, and how it fails."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from fakes.vision_service import Failure, FakeVisionService
from PIL import Image
from zfserve import Client
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_studies.patience import Patience
from zfserve_studies.transfer.features import FeatureStore, ReadLayer

Run = Callable[..., int]

SMALL = ("--train", "1,2", "--test", 2, "--folds", 2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Returns two classes of four photos. No photo is like another one."""
    generator = np.random.default_rng(0)
    for name in ("church", "tench"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for at in range(4):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{at}.png")
    return tmp_path / "data"


def asked(service: FakeVisionService) -> list[pb.ActivationsRequest]:
    return [each for each in service.study_requests if isinstance(each, pb.ActivationsRequest)]


def test_it_reads_each_photo_once_and_draws_the_accuracies(
    run: Run, data: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("transfer", "--data", data, *SMALL) == OK
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split() == ["layer", "1", "photo", "2", "photos"]
    assert "The mean over 2 classes, with the deviation over folds. Chance is 50.0%." in shown.out
    assert shown.err == "saved transfer.png\n"
    first, *others = asked(service)
    assert list(first.layers) == ["stage1", "features"]
    # The features stay as they are, and stage1 is pooled: one call for each form.
    assert [(each.form, list(each.layers)) for each in others] == [
        (pb.ACTIVATION_FORM_GRID, ["stage1"]),
        (pb.ACTIVATION_FORM_STRONGEST, ["features"]),
    ]
    assert {metadata["x-priority"] for metadata in service.metadata} == {"bulk"}
    with Image.open(folder / "transfer.png") as picture:
        assert picture.width == 1050


def test_a_second_run_asks_for_nothing_that_is_kept(
    run: Run, data: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("transfer", "--data", data, *SMALL, "--json") == OK
    first = json.loads(capsys.readouterr().out)
    count = len(asked(service))
    assert run("transfer", "--data", data, *SMALL, "--json") == OK
    assert json.loads(capsys.readouterr().out) == first
    assert len(asked(service)) == count + 1  # the names of the layers are asked for again
    assert [*first["layers"]] == ["stage1", "features"]
    assert first["layers"]["features"]["grid"] is None
    assert [each["photos"] for each in first["layers"]["stage1"]["accuracy"]] == [1, 2]
    assert not list(folder.glob("*.png"))
    # Another network must not find these features.
    service.description.model.fingerprint = "ab12"
    assert {each.name.split("-")[0] for each in (folder / "transfer-features").iterdir()} == {"ab12"}


def test_near_duplicates_are_named(run: Run, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(data / "church" / "0.png") as photo:
        photo.save(data / "tench" / "0.png")
    assert run("transfer", "--data", data, *SMALL, "--json") == OK
    (pair,) = json.loads(capsys.readouterr().out)["near_duplicates"]["pairs"]
    assert (pair["photo"], pair["of"]) == (str(data / "church" / "0.png"), str(data / "tench" / "0.png"))
    assert run("transfer", "--data", data, *SMALL) == OK
    assert "1 pairs of near-duplicates; they are never in both parts:" in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_is_named_and_left_out(
    address: str, data: Path, folder: Path, service: FakeVisionService
) -> None:
    photos = sorted((data / "church").iterdir())
    with Client(address) as client:
        store = FeatureStore(client, client.describe(), folder / "cache", Patience(lambda _: None))
        layer = ReadLayer("stage1", (2, 2))
        # The batch fails, and then the first photo of it alone.
        broken = Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE", "images")
        service.failures = [broken, broken]
        digests = store.fill(photos, [layer], lambda _done, _total: None)
    assert store.unreadable == {photos[0]: "Send a JPEG."}
    assert [*digests] == photos[1:]
    # Each of the three maps has four cells: value i of map m is 10 m + i, because each photo was asked for alone.
    assert store.load(layer, [digests[photos[1]]]).tolist() == [[0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]]


def test_bad_input_is_one_sentence(
    run: Run, data: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("transfer", "--data", data) == UNUSABLE
    assert "church has 4 photos, and 30 to learn from leave none to test" in capsys.readouterr().err
    assert run("transfer", "--data", folder) == UNUSABLE
    assert "name a folder with a folder for each class" in capsys.readouterr().err
    assert run("transfer", "--data", data, *SMALL, "--trained-on", folder) == UNUSABLE
    assert "has no photos" in capsys.readouterr().err
    assert run("transfer", "--data", data, *SMALL, "--save", "a.gif") == UNUSABLE
    assert "name one with the suffix .png" in capsys.readouterr().err
    (folder / "file").write_text("")
    assert run("transfer", "--data", data, *SMALL, "--cache", folder / "file") == FAILED
    assert "cannot be used: Not a directory" in capsys.readouterr().err
    service.late_failures = [Failure(grpc.StatusCode.NOT_FOUND, "there is no layer 'conv9'", "NOT_FOUND")]
    assert run("transfer", "--data", data, *SMALL, "--layers", "conv9") == UNUSABLE
    assert capsys.readouterr().err.startswith("error: there is no layer 'conv9'")


def test_a_server_that_restarts_is_waited_for(
    run: Run, data: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.late_failures = [Failure(grpc.StatusCode.UNAVAILABLE, "stopping", "SHUTTING_DOWN", pushback_ms=-1)]
    assert run("transfer", "--data", data, *SMALL) == OK
    assert "the server went away; the study goes on when it is back" in capsys.readouterr().err
