"""Provides fixtures that run the commands of the studies against a fake service, in an empty folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.called_service import address
from fakes.study_photos import small_photo
from fakes.vision_service import DESCRIPTION, FakeVisionService
from zfserve_cli.main import main
from zfserve_protos.v1 import zfserve_pb2 as pb

__all__ = ["address"]

Run = Callable[..., int]

CLASSES = ("tench", "church", "golf ball", "</script>", "$x$", "塔")
"""The labels of the fake's classes. Some are hard to draw."""


@pytest.fixture
def service() -> FakeVisionService:
    """Returns a fake service with a class for each place of its occlusions."""
    description = pb.DescribeModelResponse()
    description.CopyFrom(DESCRIPTION)
    del description.classes[:]
    description.classes.extend(
        pb.ClassScore(label=label, class_id=f"n{at}", index=at) for at, label in enumerate(CLASSES)
    )
    description.input.height = description.input.width = 32
    return FakeVisionService(description=description)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the current folder, which is empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    return folder


@pytest.fixture
def run(address: str, folder: Path) -> Run:
    """Returns a function that runs one command and returns its exit status."""
    return lambda *arguments: main([*map(str, arguments), "--address", address])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Returns a photo of 64 x 64 pixels, the size for which the fake service answers."""
    return small_photo(tmp_path / "photos" / "church.jpg")
