"""Tests the pictures, the output and the exit status of `zfserve project`."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.pictures import png
from fakes.vision_service import Failure, FakeVisionService
from zfserve.results import Box, ModelIdentity, Position, Projection
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_cli.projection_files import SavedProjection
from zfserve_cli.projection_table import projection_table
from zfserve_cli.whole_table import print_whole

Run = Callable[..., int]


def test_project_saves_pictures_and_a_sheet(
    run: Run, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "out"
    assert run("project", photos[0], "--layer", "conv2", "--top", 2, "--save", folder) == OK
    assert sorted(file.name for file in folder.iterdir()) == [
        "conv2-01-map0000-patch.png",
        "conv2-01-map0000.png",
        "conv2-02-map0001-patch.png",
        "conv2-02-map0001.png",
        "conv2-sheet.png",
    ]
    assert (folder / "conv2-01-map0000.png").read_bytes() == png((128, 140, 150))
    assert "  3, 4  " in capsys.readouterr().out


def test_project_for_a_class(
    run: Run,
    service: FakeVisionService,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("project", photos[0], "--for-class", "bee", "--top", 2, "--save", tmp_path / "out") == OK
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title.split() == ["relu5", "of", photos[0].name + ",", "for", "bee", "(50.0%)"]
    assert head.split()[:5] == ["map", "row,", "col", "activation", "adds"]
    assert "+0.250" in first
    assert "-0.250" in second
    assert run("project", photos[0], "--for-class", "--top", 1) == OK
    assert [request.for_class.class_name for request in service.project_requests] == ["bee", ""]
    assert run("project", photos[0], "--for-class", "bee", "--maps", "1") == UNUSABLE
    assert "not both" in capsys.readouterr().err


def test_a_table_fits_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    box = Box(1023, 1277, 1411, 1545)
    projection = Projection(1023, Position(10, 12), 10.25, box, box, b"", None, b"", ModelIdentity("", "", ""), 0, 1)
    saved = SavedProjection(projection, Path("conv5-01-map1023.png"), None)
    print_whole(projection_table([saved], "title"))
    row = capsys.readouterr().out.splitlines()[-1]
    assert len(row) <= 80, "the bar becomes shorter"
    for cell in ("1023 ", "10, 12", "10.25", "1023–1411 × 1277–1545", "conv5-01-map1023.png"):
        assert cell in row


def test_project_as_json(
    run: Run, service: FakeVisionService, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("project", photos[0], "--maps", "5,1", "--unit", "2,7", "--json") == OK
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(document["map"], document["rank"], document["total"]) for document in documents] == [(5, 0, 2), (1, 1, 2)]
    request = service.project_requests[0]
    assert (request.layer, request.unit.position.row, request.unit.position.column) == ("last", 2, 7)
    assert documents[0]["layer"] == "relu5"
    assert documents[0]["rule"] == "paper"


def test_a_projection_by_the_extended_rule_says_so_in_one_line(
    run: Run, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("project", photos[0], "--layer", "silu") == OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "extended" in line]
    assert line.endswith("which is not in the paper: stage1.silu, stage2.silu, stage3.silu and 2 more")
    assert run("project", photos[0], "--layer", "conv2") == OK
    assert "extended" not in capsys.readouterr().out


def test_layer_names_with_slashes_and_spaces_become_file_names(run: Run, photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run("project", photos[0], "--layer", "/layer4/unit 2/Add", "--top", 1, "--save", folder) == OK
    assert sorted(file.name for file in folder.iterdir()) == [
        "layer4_unit_2_Add-01-map0000-patch.png",
        "layer4_unit_2_Add-01-map0000.png",
        "layer4_unit_2_Add-sheet.png",
    ]


def test_names_stay_whole_in_a_narrow_terminal(
    run: Run, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    name = "features.stage4.unit3.body.conv3.activ"
    assert run("project", photos[0], "--layer", name, "--top", 1, "--save", tmp_path / "out") == OK
    assert f"{name}-01-map0000.png" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--unit", "middle"], ["--maps", "a"], ["--maps", "1", "--top", "2"]])
def test_project_refuses_malformed_arguments(run: Run, photos: list[Path], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("project", photos[0], *arguments)
    assert caught.value.code == UNUSABLE


@pytest.mark.parametrize(
    ("failure", "status", "says"),
    [
        (Failure(grpc.StatusCode.NOT_FOUND, "There is no conv9.", "NOT_FOUND"), UNUSABLE, "There is no conv9."),
        (
            Failure(grpc.StatusCode.INTERNAL, "It broke.", "ENGINE_FAILED"),
            FAILED,
            "It broke.; request r-1",
        ),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Too late.", "DEADLINE_EXCEEDED"), FAILED, "Too late."),
    ],
    ids=["not found", "internal", "deadline"],
)
def test_a_failed_projection(
    run: Run,
    service: FakeVisionService,
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
    failure: Failure,
    status: int,
    says: str,
) -> None:
    service.failures = [failure]
    assert run("project", photos[0]) == status
    assert says in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_an_error(
    run: Run, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for blocked in ("conv5-sheet.png", "conv5-01-map0000.png"):
        (tmp_path / blocked / blocked).mkdir(parents=True)
        assert run("project", photos[0], "--layer", "conv5", "--save", tmp_path / blocked) == FAILED
        assert "a picture cannot be written" in capsys.readouterr().err
