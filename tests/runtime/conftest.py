"""Provides a server and a channel for the tests of the runtime."""

from collections.abc import AsyncIterator

import pytest
from fakes.probe import Probe


@pytest.fixture
async def probe() -> AsyncIterator[Probe]:
    async with Probe() as started:
        yield started
