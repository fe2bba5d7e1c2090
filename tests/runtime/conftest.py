"""Provides a server and a channel for the tests of the runtime."""

from collections.abc import AsyncIterator

import pytest
from fakes.scripted_server import ScriptedServer


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as started:
        yield started
