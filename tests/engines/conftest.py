"""Provides the fixtures for the tests of the engines."""

from pathlib import Path

import pytest
from zfserve_engines.store.store import EngineStore


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")
