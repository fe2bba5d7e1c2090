"""Starts a server with a fake engine and no worker. Tests that need another server call `running_server`."""

from collections.abc import AsyncIterator, Iterator

import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import FakeEngine, Running, running_server


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.open.set()


@pytest.fixture
async def server(engine: FakeEngine) -> AsyncIterator[Running]:
    async with running_server(engine) as running:
        yield running


@pytest.fixture
def repository() -> FakeModelRepository:
    return FakeModelRepository()
