"""Lets a server check a call before it reads the call's request. `server` uses it.

A request may be megabytes long. A unary method is served as if it took a stream of requests, which is the same on the
wire. So the server can run the checks first, and read the request afterwards. Of a call that a check refuses, the
server receives only the metadata. The authorizer and early shedding make such checks.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.method_handlers import Context, Metadata

CallCheck = Callable[[Context, Metadata], None]
"""Checks a call before its request is read, and raises an error to end the call. It takes the call's metadata as an
argument, because gRPC copies the metadata each time that it is asked for them."""

_CANCELLATION_S = 0.05
"""Seconds to wait for a cancellation. If a caller goes away, gRPC first reports the end of the requests, and only then
the cancellation."""


@dataclass(frozen=True)
class ConditionalCheck:
    """Holds a check that runs only under load, because it would delay the answer to a lone client.

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
