"""Starts a server with the network `cells`, whose studies are computed by hand, on a real engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.cells_network import BundlesOnDisk, ServeCells, write_cells_bundle
from fakes.serving import Running, running_server


@pytest.fixture
def serve_cells(tmp_path: Path) -> ServeCells:
    """Returns a function that serves a bundle of `cells`."""
    return lambda **options: running_server(repository=BundlesOnDisk(write_cells_bundle(tmp_path, **options)))


@pytest.fixture
async def cells(serve_cells: ServeCells) -> AsyncIterator[Running]:
    async with serve_cells() as running:
        yield running


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/worker.sock"
