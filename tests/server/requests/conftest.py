"""Starts a server with a fake worker, for the tests of the RPCs that a worker answers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.serving import FakeEngine, FakeWorker, Running, projection_is, running_server


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/worker.sock"


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
async def paired_server(engine: FakeEngine, worker: FakeWorker, address: str) -> AsyncIterator[Running]:
    """Starts a server that is connected to its worker."""
    async with worker.listening(address), running_server(engine, worker=True, worker_address=address) as server:
        await projection_is(server, serving=True)
        yield server
