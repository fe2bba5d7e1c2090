"""Provides a fake service on its own port, and a fixture that calls it with each client."""

import asyncio
from collections.abc import Callable, Generator
from inspect import isasyncgen
from typing import Any

import pytest
from fakes.called_service import address, photos, service
from zfserve import AsyncClient, Client

__all__ = ["address", "photos", "service"]

Ask = Callable[..., Any]


@pytest.fixture(params=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Returns `ask(address, method, *args, **kwargs)`, which makes one call with one of the clients.

    It returns the results of a stream as a list.
    """
    return _ask_sync if request.param == "Client" else _ask_async


def _ask_sync(address: str, method: str, /, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    with Client(address, **client or {}) as opened:
        answer = getattr(opened, method)(*args, **kwargs)
        return list(answer) if isinstance(answer, Generator) else answer


def _ask_async(address: str, method: str, /, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    async def call() -> Any:
        async with AsyncClient(address, **client or {}) as opened:
            answer = getattr(opened, method)(*args, **kwargs)
            return [result async for result in answer] if isasyncgen(answer) else await answer

    return asyncio.run(call())
