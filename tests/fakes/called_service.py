"""Provides fixtures for the tests of the client and the command line: a fake service on its own port, and photos."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.vision_service import FakeVisionService, listening


@pytest.fixture
def service() -> FakeVisionService:
    return FakeVisionService()


@pytest.fixture
def address(service: FakeVisionService) -> Iterator[str]:
    with listening(service) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"photo{length}.jpg" for length in (1, 2, 3)]
    for length, file in enumerate(files, 1):
        file.write_bytes(bytes(length))
    return files
