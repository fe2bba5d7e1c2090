"""Starts a server with a fake engine, paired with a fake worker."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fakes.serving import FakeEngine, FakeWorker, Running, projection_is, running_server


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.open.set()


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/worker.sock"


@pytest.fixture
async def paired_server(engine: FakeEngine, worker: FakeWorker, address: str) -> AsyncIterator[Running]:
    async with worker.listening(address), running_server(engine, worker=True, worker_address=address) as server:
        await projection_is(server, serving=True)
        yield server
