"""Reads the streams of studies, and the errors that end them."""

from collections.abc import AsyncIterable
from typing import TypeVar

import grpc
import pytest
from zfserve_runtime.errors import ServiceError
from zfserve_runtime.grpc.status import from_call_error

M = TypeVar("M")


async def messages_of(call: AsyncIterable[M]) -> list[M]:
    """Returns all messages of a stream."""
    return [message async for message in call]


async def error_of(call: AsyncIterable[object]) -> ServiceError:
    """Returns the error that ends a stream."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await messages_of(call)
    error = from_call_error(failed.value)
    assert error is not None, failed.value
    assert error.status is failed.value.code()
    return error
