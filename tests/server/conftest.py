"""A server with a fake engine and no worker; tests that need another start their own with `running_server`."""

from collections.abc import AsyncIterator, Iterator

import pytest
from fakes.serving import FakeEngine, Running, running_server
from fakes.shelf import Shelf


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
def shelf() -> Shelf:
    return Shelf()
