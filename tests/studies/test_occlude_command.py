"""Tests `zfserve occlude`: what it asks, prints and writes, and how it fails."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.study_photos import small_photo
from fakes.vision_service import Failure, FakeVisionService
from PIL import Image
from zfserve_cli.exit_statuses import FAILED, OK, UNREACHABLE, UNUSABLE
from zfserve_cli.main import main
from zfserve_protos.v1 import zfserve_pb2 as pb

Run = Callable[..., int]

NO_PROJECTION = Failure(grpc.StatusCode.UNIMPLEMENTED, "The node Softmax_1 is in the way.", "UNIMPLEMENTED")
NO_WORKER = Failure(grpc.StatusCode.UNAVAILABLE, "There is no worker.", "WORKER_UNAVAILABLE", pushback_ms=-1)
TOO_LARGE = Failure(grpc.StatusCode.INVALID_ARGUMENT, "a square of 99 pixels does not fit", "INVALID_INPUT", "size")


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_photo_makes_a_picture_and_a_page(
    run: Run, photo: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("occlude", photo) == OK
    shown = capsys.readouterr()
    assert shown.out == (
        "church.jpg: church, 75.0% without a square\n"
        "The box matters most: with the square there, “church” falls from 75.0% to 0.0%. “church” is the most probable "
        "label at 1 of 6 places. The sum of map 5 falls most elsewhere, from 8.00 to -5.00.\n"
    )
    assert shown.err == "saved church-occluded.png and church-occluded.html\n"
    assert sorted(file.name for file in folder.iterdir()) == ["church-occluded.html", "church-occluded.png"]
    with Image.open(folder / "church-occluded.png") as picture:
        assert picture.width == 1200


def test_the_options_reach_the_server_as_bulk_work(run: Run, photo: Path, service: FakeVisionService) -> None:
    options = ("--size", 12, "--stride", 4, "--class", "tench", "--layer", "conv5", "--map", 7, "--model", "birds:1")
    assert run("occlude", photo, *options, "--fill", "blur:4") == OK
    (request,) = service.study_requests
    assert isinstance(request, pb.OccludeRequest)
    assert (request.size, request.stride, request.class_name, request.layer, request.map) == (
        12,
        4,
        "tench",
        "conv5",
        7,
    )
    assert request.blur.sigma == 4
    # The exact version that the study began with is asked for, so that no other one can answer in between.
    assert (request.model.name, request.model.version) == ("zfnet", "3")
    assert service.described[0].name == "birds"
    (projection,) = service.project_requests
    assert (list(projection.selection.indices), projection.unit.position.row, projection.unit.position.column) == (
        [7],
        3,
        4,
    )
    assert {metadata["x-priority"] for metadata in service.metadata} == {"bulk"}


def test_json_has_every_number_and_writes_no_files(
    run: Run, photo: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("occlude", photo, "--json", "--fill", "mean") == OK
    (document,) = documents(capsys.readouterr().out)
    assert document["file"] == str(photo)
    assert document["probabilities"] == [[0, 0.125], [0.25, 0.375], [0.5, 0.625]]
    assert document["best_classes"] == [[0, 1], [2, 3], [4, 5]]
    assert document["map_sums"] == [[0, -1], [-2, -3], [-4, -5]]
    assert (document["tops"], document["lefts"], document["size"]) == ([0, 16, 20], [0, 16], 12)
    assert document["fill"] == {"kind": "mean"}
    assert document["labels"]["5"] == "塔"
    assert document["summary"]["source_box"] == {"left": 0, "top": 0, "right": 24, "bottom": 24}
    assert document["computation"] == {"precision": "int8", "engine": "openvino"}
    assert list(folder.iterdir()) == []
    assert run("occlude", photo, "--json", "--save", folder / "a.png") == OK
    (document,) = documents(capsys.readouterr().out)
    assert (document["picture"], document["page"]) == (str(folder / "a.png"), str(folder / "a.html"))
    assert (folder / "a.html").exists()


def test_the_page_needs_nothing_else_and_labels_are_no_code(run: Run, photo: Path, folder: Path) -> None:
    assert run("occlude", photo) == OK
    page = (folder / "church-occluded.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("data:image", "")
    assert page.count("</script>") == 2
    assert "@@" not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["labels"]["3"] == "</script>"
    assert data["seen"] == {"left": 0, "top": 0, "right": 64, "bottom": 64}
    assert [each["letter"] for each in data["categories"]] == ["A", "B", "C", "D", "E", "F"]
    assert data["categories"][0]["label"] == "church"
    assert len(data["palette"]) == 256
    assert len(data["pictures"]) == 2


@pytest.mark.parametrize("failure", [NO_PROJECTION, NO_WORKER])
def test_a_network_without_projections_gives_everything_else(
    run: Run,
    photo: Path,
    folder: Path,
    service: FakeVisionService,
    failure: Failure,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service.project_failures = [failure]
    assert run("occlude", photo) == OK
    assert f"no projection: {failure.message}" in capsys.readouterr().out
    assert (folder / "church-occluded.png").exists()
    data = (folder / "church-occluded.html").read_text().split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["note"] == f"no projection: {failure.message}"


def test_a_server_that_restarts_in_the_middle_is_waited_for(
    run: Run, photo: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.late_failures = [Failure(grpc.StatusCode.UNAVAILABLE, "stopping", "SHUTTING_DOWN", pushback_ms=-1)]
    assert run("occlude", photo) == OK
    assert "the server went away; the study goes on when it is back\n" in capsys.readouterr().err
    assert len(service.study_requests) == 2


def test_a_photo_that_fails_does_not_stop_the_others(
    run: Run, photo: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    second = small_photo(photo.with_name("second.jpg"))
    (photo.parent / "text.jpg").write_text("no photo")
    service.late_failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE")]
    assert run("occlude", photo, second, "--save", "out") == FAILED
    assert capsys.readouterr().err.splitlines() == [
        "saved out/second-occluded.png and out/second-occluded.html",
        f"error: {photo}: Send a JPEG.",
    ]
    service.failures = []
    service.late_failures = [TOO_LARGE]
    assert run("occlude", photo, "--json", "--size", 99) == UNUSABLE
    shown = capsys.readouterr()
    assert documents(shown.out)[0]["error"]["field"] == "size"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("no.jpg",), "no.jpg: there is no such photo, and no folder with photos"),
        (("{photo}", "{photo2}", "--save", "a.png"), "--save a.png is one file, and there are 2 photos; name a folder"),
    ],
)
def test_bad_names_are_one_sentence(
    run: Run, photo: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    second = small_photo(photo.with_name("second.jpg"))
    assert run("occlude", *(each.format(photo=photo, photo2=second) for each in arguments)) == UNUSABLE
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize("option", [("--stride", "0"), ("--size", "-1"), ("--fill", "red"), ("--fill", "blur:x")])
def test_bad_options_are_told_before_any_call(
    run: Run, photo: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit):
        run("occlude", photo, *option)
    assert f"argument {option[0]}: {option[1]!r} is not" in capsys.readouterr().err
    assert service.metadata == []


def test_a_colour_out_of_range_is_one_sentence(run: Run, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("occlude", photo, "--fill", "1,2,300") == UNUSABLE
    assert "there is no fill (1, 2, 300); give (red, green, blue) from 0 to 255" in capsys.readouterr().err


def test_without_a_server_the_command_ends_at_once(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["occlude", str(photo), "--address", "127.0.0.1:1"]) == UNREACHABLE
    assert "no zfserve answers at 127.0.0.1:1" in capsys.readouterr().err


def test_a_server_that_stays_away_is_given_up_after_the_timeout(
    run: Run, photo: Path, service: FakeVisionService
) -> None:
    second = small_photo(photo.with_name("second.jpg"))
    service.late_failures = [Failure(grpc.StatusCode.UNAVAILABLE, "stopping", "SHUTTING_DOWN", pushback_ms=-1)] * 9
    assert run("occlude", photo, second, "--timeout", 0.4) == UNREACHABLE
    assert len(service.study_requests) == 2  # the second photo waits no longer
