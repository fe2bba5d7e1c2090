"""Fixtures for the tests of the runtime room."""

from collections.abc import AsyncIterator

import pytest
from fakes.probe import Probe


@pytest.fixture
async def probe() -> AsyncIterator[Probe]:
    async with Probe() as started:
        yield started
