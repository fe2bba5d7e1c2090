"""Lets a server check a call before it reads the call's request. `server` uses it.

A request may have megabytes. A method with one request is served as if it took a stream of requests, which is the same
on the wire. So the server reads the request itself, after the checks, and receives only the metadata of a call that a
check refuses. The authorizer and early shedding make such checks.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.method_handlers import Context, Metadata

CallCheck = Callable[[Context, Metadata], None]
"""Checks a call before its request is read. An error that it raises ends the call. It gets the call's metadata, which
gRPC would otherwise copy once more."""

_CANCELLATION_S = 0.05
"""Seconds to wait for a cancellation. If a caller goes away, gRPC first reports the end of the requests, and only then
the cancellation."""


@dataclass(frozen=True)
class ConditionalCheck:
    """A check that is made only under load, because it takes time before a lone client gets its answer.

    Attributes:
        check: runs before the request is read.
        applies: returns True when the next call must be checked.
    """

    check: CallCheck
    applies: Callable[[], bool]


async def read_request(context: Context) -> Any:
    """Reads the one request of a call that is served as if it had a stream of them.

    Raises:
        InvalidInput: the call ended without a request.
    """
    request = await context.read()  # an iterator over the requests would take two more steps of coroutines
    if request is grpc.aio.EOF:
        await asyncio.sleep(_CANCELLATION_S)  # this task is cancelled meanwhile if the caller has gone
        raise InvalidInput("the call ended before its request was sent")
    return request
