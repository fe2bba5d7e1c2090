"""Tests the output and the exit status of `zfserve classify`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.vision_service import Failure, FakeVisionService
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE

Run = Callable[..., int]


def test_classify_one_photo(run: Run, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("classify", photos[0]) == OK
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines() if "%" in line] == [
        ["church", "█" * 22 + "▌", "75.0%"],
        ["tench", "█" * 5 + "▋", "18.8%"],
        ["golf", "ball", "█▉", "6.2%"],
    ]
    assert "decode 1.5 ms" in shown.out
    assert shown.err == ""


def test_classify_as_json(run: Run, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("classify", photos[0], "--json", "--top", 1, "--features") == OK
    assert json.loads(capsys.readouterr().out) == {
        "file": str(photos[0]),
        "classes": [{"label": "church", "class_id": "n1", "index": 1, "probability": 0.75}],
        "model": {"name": "zfnet", "version": "3", "fingerprint": "ab12"},
        "image_reference": "ref-1",
        "features": [0.5, 0.25],
        "timings": {"decode_ms": 1.5, "queue_ms": 0.25, "inference_ms": 4.0, "batch_size": 2},
    }


def test_classify_a_folder_as_json_lines_with_one_bad_photo(
    run: Run, service: FakeVisionService, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    service.failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE")] * 3
    assert run("classify", photos[0].parent, "--json") == UNUSABLE
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["file"] for document in documents] == [str(photo) for photo in photos]
    assert {document["error"]["reason"] for document in documents} == {"IMAGE_UNDECODABLE"}


def test_classify_a_folder_shows_a_row_for_each_photo(
    run: Run,
    service: FakeVisionService,
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    service.failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE")]
    assert run("classify", photos[0].parent) == FAILED
    shown = capsys.readouterr()
    assert sum(photo.name in shown.out for photo in photos) == 2
    assert "Send a JPEG." in shown.err


def test_a_table_fits_a_terminal_of_80_columns(
    run: Run, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    assert run("classify", *(photo.name for photo in photos)) == OK
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(photos)


def test_file_names_that_are_no_text_or_long_are_printed_in_full(address: str, tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.jpg"), f"{'long' * 30}.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"123")
    command = [sys.executable, "-m", "zfserve_cli.main", "classify", str(tmp_path), "--address", address]
    done = subprocess.run(
        command, capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    )
    assert done.returncode == OK, done.stderr
    shown = done.stdout.decode()
    assert "caf\\udce9.jpg" in shown
    assert "long" * 30 in "".join(re.findall(r"^ (\S+)", shown, re.MULTILINE))
