"""Tests `zfserve invariance`: what it asks, prints and writes, and how it fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.study_photos import small_photo
from fakes.vision_service import Failure, FakeVisionService
from zfserve_cli.exit_statuses import FAILED, OK, UNREACHABLE, UNUSABLE
from zfserve_protos.v1 import zfserve_pb2 as pb

Run = Callable[..., int]

AWAY = Failure(grpc.StatusCode.UNAVAILABLE, "stopping", "SHUTTING_DOWN", pushback_ms=-1)


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def kinds_of(service: FakeVisionService) -> list[int]:
    return [request.kind for request in service.study_requests if isinstance(request, pb.TransformRequest)]


def test_the_papers_three_kinds_make_a_figure_and_sentences(
    run: Run, photo: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("invariance", photo) == OK
    shown = capsys.readouterr()
    assert shown.out.startswith("church.jpg: church, 75.0%\n")
    assert "Do the claims of the paper hold for this photo?" in shown.out
    # The fake moves the low layer by 0.25 and the high one by 0.125 at its only step. So both have moved all the way.
    assert "Does not hold: first layer 100%, top 100% (medians)." in shown.out
    assert shown.err == "saved invariance.png\n"
    assert [file.name for file in folder.iterdir()] == ["invariance.png"]
    assert kinds_of(service) == [
        pb.TRANSFORM_KIND_VERTICAL_TRANSLATION,
        pb.TRANSFORM_KIND_SCALE,
        pb.TRANSFORM_KIND_ROTATION,
    ]


def test_the_options_reach_the_server(run: Run, photo: Path, service: FakeVisionService) -> None:
    options = ("--class", "tench", "--low-layer", "conv2", "--border", "edge", "--resampling", "nearest")
    assert run("invariance", photo, "--kind", "flips,scale,translation,scale", *options) == OK
    assert kinds_of(service) == [
        pb.TRANSFORM_KIND_HORIZONTAL_FLIP,
        pb.TRANSFORM_KIND_VERTICAL_FLIP,
        pb.TRANSFORM_KIND_SCALE,
        pb.TRANSFORM_KIND_VERTICAL_TRANSLATION,
        pb.TRANSFORM_KIND_HORIZONTAL_TRANSLATION,
    ]
    first = service.study_requests[0]
    assert isinstance(first, pb.TransformRequest)
    assert (first.class_name, first.low_layer, first.border, first.resampling) == (
        "tench",
        "conv2",
        pb.BORDER_EDGE,
        pb.RESAMPLING_NEAREST,
    )
    assert first.include_pictures
    assert (first.model.name, first.model.version) == ("zfnet", "3")


def test_json_has_every_number_and_the_claims(
    run: Run, photo: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("invariance", photo, "--json", "--kind", "hue") == OK
    answer, last = documents(capsys.readouterr().out)
    assert answer["sweeps"]["hue"] == {
        "steps": [0, 10],
        "probabilities": [0.5, 0.5],
        "best": ["church", "church"],
        "low": {"layer": "conv1", "distances": [0, 3], "relative": [0, 0.25]},
        "high": {"layer": "features", "distances": [0, 1], "relative": [0, 0.125]},
    }
    assert (answer["border"], answer["resampling"], answer["class"]["label"]) == ("grey", "bilinear", "church")
    assert last["photos"] == 1
    assert [(each["kind"], each["holds"], each["measured"]) for each in last["claims"]] == [
        ("hue", True, "2.00 times as far (median)"),
        ("hue", True, "it stays at 100%; the class has 50% on average, and 75% untouched"),
    ]
    assert not list(folder.iterdir())
    (request,) = service.study_requests
    assert isinstance(request, pb.TransformRequest)
    assert not request.include_pictures


def test_a_photo_that_fails_does_not_stop_the_others(
    run: Run, photo: Path, folder: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photo.with_name("bad.jpg")
    bad.write_bytes(b"")
    service.late_failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE")]
    assert run("invariance", bad, photo, "--kind", "scale", "--save", "out/figure.webp") == FAILED
    shown = capsys.readouterr()
    assert shown.err == f"saved out/figure.webp\nerror: {bad}: Send a JPEG.\n"
    assert "church.jpg: church" in shown.out
    assert (folder / "out" / "figure.webp").exists()
    no_layer = Failure(grpc.StatusCode.NOT_FOUND, "there is no layer 'x'; choose conv1", "NOT_FOUND")
    service.late_failures = [no_layer, no_layer]
    second = small_photo(photo.with_name("second.jpg"))
    assert run("invariance", photo, second, "--low-layer", "x") == UNUSABLE
    assert capsys.readouterr().err == "error: 2 photos: there is no layer 'x'; choose conv1\n"


def test_a_server_that_restarts_in_the_middle_is_waited_for_as_long_as_the_timeout(
    run: Run, photo: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.late_failures = [AWAY]
    assert run("invariance", photo, "--kind", "scale") == OK
    assert "the server went away; the study goes on when it is back\n" in capsys.readouterr().err
    service.late_failures = [AWAY] * 9
    assert run("invariance", photo, "--timeout", 0.4) == UNREACHABLE


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--kind", "hues"), "there is no kind 'hues'; did you mean hue?"),
        (("--kind", "xyz"), "there is no kind 'xyz'; there are vertical-translation"),
        (("--save", "a.txt"), "--save a.txt is no picture file"),
        (("no.jpg",), "no.jpg: there is no such photo"),
    ],
)
def test_bad_arguments_are_one_sentence(
    run: Run, photo: Path, service: FakeVisionService, capsys: pytest.CaptureFixture[str], arguments: Any, sentence: str
) -> None:
    try:
        status = run("invariance", photo, *arguments)
    except SystemExit as error:  # argparse ends the process
        status = int(str(error.code))
    assert status == UNUSABLE
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert not service.study_requests
