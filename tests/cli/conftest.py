"""Provides fixtures that run `zfserve` against a fake service."""

from collections.abc import Callable

import pytest
from fakes.called_service import address, photos, service
from zfserve_cli.main import main

__all__ = ["address", "photos", "service"]

Run = Callable[..., int]


@pytest.fixture
def run(address: str) -> Run:
    """Returns a function that runs one command and returns its exit status."""
    return lambda *arguments: main([*map(str, arguments), "--address", address])
