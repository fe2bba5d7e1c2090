"""Reads the answers of calls that stream. Both clients inherit it. Closing the generator cancels the call."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

from zfserve.base_client import BaseClient

_Result = TypeVar("_Result")


class StreamingClient(BaseClient):
    """Adds streams to a client that is sync."""

    def _results(
        self,
        method: str,
        send: Callable[..., Any],
        request: Any,
        timeout_s: float | None,
        convert: Callable[[Any], _Result | None],
    ) -> Generator[_Result]:
        """Makes one call, and yields its results as they come.

        Args:
            method: the method's full name, such as "/zfserve.v1.VisionService/Project".
            send: the stub's method.
            request: the request. Its field `model` selects the model.
            timeout_s: the timeout in seconds of all results together. None means the client's timeout.
            convert: makes a result of a message. None means that the result needs further messages.

        Raises:
            ZfserveError: the call failed.
        """
        with self._call(method, self._throttle(method, request.model)) as metadata:
            call = send(request, timeout=self._timeout(timeout_s), metadata=metadata)
            try:
                for response in call:
                    if (result := convert(response)) is not None:
                        yield result
            finally:
                call.cancel()


class AsyncStreamingClient(BaseClient):
    """Adds streams to a client over grpc.aio."""

    async def _results(
        self,
        method: str,
        send: Callable[..., Any],
        build: Callable[[], Any],
        timeout_s: float | None,
        convert: Callable[[Any], _Result | None],
    ) -> AsyncGenerator[_Result]:
        """Builds a request, makes one call, and yields its results as they come.

        The arguments are those of `StreamingClient._results`, but `build` returns the request. It runs in a thread,
        because it reads files.
        """
        request = await asyncio.to_thread(build)
        with self._call(method, self._throttle(method, request.model)) as metadata:
            call = send(request, timeout=self._timeout(timeout_s), metadata=metadata)
            try:
                async for response in call:
                    if (result := convert(response)) is not None:
                        yield result
            finally:
                call.cancel()
