"""Tests the pictures, the output and the exit status of `zfserve explain`."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.vision_service import HEATMAP, Failure, FakeVisionService
from PIL import Image
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_protos.v1 import zfserve_pb2 as pb

Run = Callable[..., int]

NO_PROJECTION = Failure(grpc.StatusCode.UNIMPLEMENTED, "The node Softmax_1 is in the way.", "UNIMPLEMENTED")
UNDECODABLE = Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def church(tmp_path: Path) -> Path:
    return photo(tmp_path / "photos" / "church.jpg")


def photo(file: Path) -> Path:
    """Writes a photo of 40 x 30 pixels, the size for which the fake service answers."""
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), (90, 120, 200)).save(file)
    return file


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_one_photo_makes_one_picture(
    run: Run, church: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run("explain", church) == OK
    shown = capsys.readouterr()
    for figure in (
        "church, 68.8% in int8, 75.0% in float32",
        "relu5",
        "integrated gradients",
        "4.00: baseline 1.00, heatmap +2.75, completeness gap +0.250 (8.3%)",
        "The maps of relu5 that add most to the score of “church”: together -6.00 of +2.75",
        "+0.250",
    ):
        assert figure in shown.out
    assert shown.err == "saved church-explained.png\n"
    assert names(folder) == ["church-explained.png"]
    with Image.open(folder / "church-explained.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width == 928


def test_the_maps_are_those_of_the_same_class_layer_and_model(
    run: Run, service: FakeVisionService, church: Path, folder: Path
) -> None:
    assert run("explain", church, "--class", "bee", "--model", "zfnet") == OK
    (request,) = service.project_requests
    assert (request.layer, request.for_class.class_name, request.for_class.count) == ("relu5", "n1", 6)
    assert (request.model.name, request.model.version) == ("zfnet", "3")
    assert run("explain", church, "--top", 0) == OK
    assert len(service.project_requests) == 1


def test_grad_cam_has_no_baseline(
    run: Run, service: FakeVisionService, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", church, "--method", "grad-cam") == OK
    assert service.explain_requests[0].method == pb.EXPLANATION_METHOD_GRAD_CAM
    shown = capsys.readouterr().out
    assert "Grad-CAM" in shown
    assert ["score", "4.00"] in [line.split() for line in shown.splitlines()]
    assert "baseline 1.00" not in shown


def test_every_choice_is_a_part_of_the_file_name(run: Run, church: Path, folder: Path) -> None:
    assert run("explain", church, "--class", "French horn", "--layer", "/layer4/Add", "--method", "grad-cam") == OK
    assert names(folder) == ["church-explained-French_horn-layer4_Add-grad-cam.png"]


def test_a_second_run_says_that_it_replaces_the_picture(
    run: Run, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", church) == OK
    assert run("explain", church) == OK
    assert capsys.readouterr().err == "saved church-explained.png\nreplaced church-explained.png\n"
    assert names(folder) == ["church-explained.png"]


@pytest.mark.parametrize("name", ["why.png", "why.JPG", "why.jpeg", "why.webp"])
def test_save_names_a_file_of_any_format(run: Run, church: Path, folder: Path, name: str) -> None:
    assert run("explain", church, "--save", folder / "new" / name) == OK
    with Image.open(folder / "new" / name) as picture:
        assert picture.format == {"png": "PNG", "webp": "WEBP"}.get(name[4:], "JPEG")


def test_several_photos_have_a_row_and_a_picture_each(
    run: Run, church: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    twin = photo(church.parent.parent / "others" / "church.png")
    assert run("explain", church, twin, "--save", folder / "out") == OK
    shown = capsys.readouterr()
    assert names(folder / "out") == ["church-explained-2.png", "church-explained.png"], "no picture replaces another"
    for file in (church, twin):
        assert f"{file} " in shown.out, "a name stays whole in a narrow terminal"
    assert "church-explained-2.png" in shown.out
    assert shown.err == f"saved 2 pictures in {folder / 'out'}\n"
    photo(folder / "out" / "church-explained-2.png")
    (folder / "out" / "church-explained.png").unlink()
    assert run("explain", church, twin, "--save", folder / "out") == OK
    assert capsys.readouterr().err.endswith("; 1 of them replaced older ones\n")


def test_a_bad_photo_among_good_ones_is_an_error_in_its_place(
    run: Run, service: FakeVisionService, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.failures = [UNDECODABLE]
    good = photo(church.parent / "pagoda.jpg")
    assert run("explain", church, good, "--json", "--save", "out") == FAILED
    bad, answer = map(json.loads, capsys.readouterr().out.splitlines())
    assert (bad["file"], bad["error"]["reason"]) == (str(church), "IMAGE_UNDECODABLE")
    assert (answer["file"], answer["picture"]) == (str(good), "out/pagoda-explained.png")
    assert names(folder / "out") == ["pagoda-explained.png"]
    service.failures = [UNDECODABLE]
    assert run("explain", church, good) == FAILED
    shown = capsys.readouterr()
    assert "Send a JPEG." in shown.err
    assert "pagoda.jpg" in shown.out


def test_json_has_the_heatmap_and_writes_no_picture(
    run: Run, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", church, "--json", "--top", 1) == OK
    document = json.loads(capsys.readouterr().out)
    assert document["heatmap"] == [list(row) for row in HEATMAP]
    assert document["for_class"]["label"] == "church"
    assert (document["served_probability"], document["served_precision"]) == (0.6875, "int8")
    assert (document["layer"], document["method"], document["score"]) == ("relu5", "integrated-gradients", 4.0)
    assert document["source_box"] == {"left": 0, "top": 0, "right": 40, "bottom": 30}
    assert [entry["attribution"] for entry in document["maps"]] == [0.25]
    assert "overlay_png" not in document
    assert "picture" not in document
    assert names(folder) == []


def test_a_network_that_cannot_be_projected_has_a_heatmap_and_a_note(
    run: Run, service: FakeVisionService, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.project_failures = [NO_PROJECTION]
    assert run("explain", church) == OK
    assert "no maps: The node Softmax_1 is in the way." in capsys.readouterr().out
    assert names(folder) == ["church-explained.png"]


def test_a_network_that_cannot_be_explained_is_an_error(
    run: Run, service: FakeVisionService, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.failures = [NO_PROJECTION]
    assert run("explain", church) == UNUSABLE
    assert "The node Softmax_1 is in the way." in capsys.readouterr().err
    assert names(folder) == []


def test_a_server_of_an_older_release(
    run: Run, service: FakeVisionService, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.failures = [Failure(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")]
    assert run("explain", church) == UNUSABLE
    assert "does not know this call; it is of an older release, or no zfserve" in capsys.readouterr().err


def test_a_picture_never_replaces_a_photo(
    run: Run, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = church.read_bytes()
    assert run("explain", church, "--save", church) == UNUSABLE
    assert "would replace the photo" in capsys.readouterr().err
    older = photo(church.parent / "church-explained.png")
    assert run("explain", church, older, "--save", church.parent) == UNUSABLE
    assert church.read_bytes() == before


def test_one_file_for_several_photos_is_refused(
    run: Run, service: FakeVisionService, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", church, photo(church.parent / "b.jpg"), "--save", "why.png") == UNUSABLE
    assert "is one file, and there are 2 photos; name a folder" in capsys.readouterr().err
    assert not service.explain_requests


def test_a_path_that_does_not_exist(
    run: Run, service: FakeVisionService, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", "nowhere.jpg") == UNUSABLE
    assert "nowhere.jpg: there is no such photo" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_an_error_and_leaves_nothing(
    run: Run, church: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = photo(church.parent / "pagoda.jpg")
    (folder / "pagoda-explained.png" / "in the way").mkdir(parents=True)
    assert run("explain", church, second) == FAILED
    shown = capsys.readouterr()
    assert "a picture cannot be written" in shown.err
    assert "saved church-explained.png" in shown.err, "what was done before is reported"
    assert names(folder) == ["church-explained.png", "pagoda-explained.png"]


def test_a_photo_that_pillow_cannot_draw(
    run: Run, photos: list[Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", photos[0]) == FAILED
    assert "photo1.jpg cannot be drawn: " in capsys.readouterr().err
    assert names(folder) == []
