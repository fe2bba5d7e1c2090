"""A fake service on a port of its own, and both clients and the command line as ways of calling it."""

import asyncio
from collections.abc import Callable, Generator, Iterator
from inspect import isasyncgen
from pathlib import Path
from typing import Any

import pytest
from fakes.vision_service import FakeVisionService, listening
from zfserve_client import AsyncClient, Client
from zfserve_client.cli import main

Ask = Callable[..., Any]
Run = Callable[..., int]


@pytest.fixture
def service() -> FakeVisionService:
    return FakeVisionService()


@pytest.fixture
def address(service: FakeVisionService) -> Iterator[str]:
    with listening(service) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def run(address: str) -> Run:
    """`zfserve` against the fake service."""
    return lambda *arguments: main([*map(str, arguments), "--address", address])


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"photo{length}.jpg" for length in (1, 2, 3)]
    for length, file in enumerate(files, 1):
        file.write_bytes(bytes(length))
    return files


@pytest.fixture(params=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`ask(address, method, *args, **kwargs)`: one call by either client; the results of a stream come as a list."""
    return _ask_sync if request.param == "Client" else _ask_async


def _ask_sync(address: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    with Client(address, **client or {}) as opened:
        answer = getattr(opened, method)(*args, **kwargs)
        return list(answer) if isinstance(answer, Generator) else answer


def _ask_async(address: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    async def call() -> Any:
        async with AsyncClient(address, **client or {}) as opened:
            answer = getattr(opened, method)(*args, **kwargs)
            return [result async for result in answer] if isasyncgen(answer) else await answer

    return asyncio.run(call())
