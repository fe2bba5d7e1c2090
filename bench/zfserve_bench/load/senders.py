"""Makes the calls of one stream of an open loop: every kind on a raw channel, or `Classify` by zfserve's client.

A raw channel keeps the load process lean, because it may share the CPUs with the service: requests are bytes made
beforehand, and answers stay bytes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve import AsyncClient, ZfserveError, throttle
from zfserve.channel import channel_options, channel_target
from zfserve_protos.limits import MAX_MESSAGE_BYTES
from zfserve_protos.metadata import CLIENT_ID_KEY, PRIORITY_KEY
from zfserve_protos.methods import CLASSIFY, DESCRIBE_MODEL, PROJECT
from zfserve_protos.v1 import zfserve_pb2 as pb

from zfserve_bench.load.protocol import (
    OK,
    THROTTLED,
    Kind,
    OpenLoop,
    Sender,
    Stream,
)

Send: TypeAlias = Callable[[], Awaitable[str]]
"""Makes the next call of a stream and returns the name of its status, or raises AioRpcError."""

CANCEL_AFTER_S = 0.005
"""The time after which a call is cancelled, in seconds. The server has the request by then, but has not answered."""

REQUESTS_OF = {Kind.CANCELLED_CLASSIFY: Kind.JPEG, Kind.CANCELLED_PROJECT: Kind.PROJECT}
"""The kinds that send the requests of another kind."""

OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
"""Channels of one process share connections unless they have this option."""


@asynccontextmanager
async def connect(
    target: str, requests: Mapping[Kind, Sequence[bytes]], stream: Stream, order: OpenLoop
) -> AsyncIterator[Send]:
    """Opens the connection of a stream, and yields the function that makes its calls."""
    messages = requests.get(REQUESTS_OF.get(stream.kind, stream.kind), [b""])
    if order.sender is Sender.CLIENT:
        async with AsyncClient(target, priority=stream.priority, client_id=stream.name) as client:
            yield client_sender(client, messages, order.deadline_s)
        return
    if order.sender is Sender.BARE:
        metadata: tuple[tuple[str, str], ...] = ((CLIENT_ID_KEY, stream.name), (PRIORITY_KEY, stream.priority))
        channel = grpc.aio.insecure_channel(target, [("grpc.enable_retries", 0), OWN_CONNECTION])
    else:
        metadata, channel = (), balanced_channel(target)
    async with channel:
        if stream.kind is Kind.HEALTH_WATCH:
            yield lambda: watch_health(target)
        else:
            yield ChannelSender(channel, messages, order.deadline_s, metadata).send(stream.kind)


def balanced_channel(target: str, *options: tuple[str, int | str]) -> grpc.aio.Channel:
    """Opens a channel with the options of zfserve's client: round robin over all servers, and retries."""
    target = channel_target(target)
    return grpc.aio.insecure_channel(target, [*channel_options(target, MAX_MESSAGE_BYTES, None), *options])


class ChannelSender:
    """Makes calls of any kind on a channel. Each method returns the name of a status, or raises AioRpcError.

    Args:
        messages: serialised requests, sent in turn.
        deadline_s: the timeout of each call.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        messages: Sequence[bytes],
        deadline_s: float,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        self._classify: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY)
        self._describe: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(DESCRIBE_MODEL)
        self._project: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(PROJECT)
        self._messages = cycle(messages)
        self._deadline_s = deadline_s
        self._metadata = metadata

    def send(self, kind: Kind) -> Send:
        """Returns the method that makes calls of `kind`."""
        return {
            Kind.PROJECT: self._send_project,
            Kind.DESCRIBE: self._send_describe,
            Kind.CANCELLED_CLASSIFY: self._cancel_classify,
            Kind.CANCELLED_PROJECT: self._cancel_project,
        }.get(kind, self._send_classify)

    async def _send_classify(self) -> str:
        await self._classify(next(self._messages), timeout=self._deadline_s, metadata=self._metadata)
        return OK

    async def _send_describe(self) -> str:
        await self._describe(b"", timeout=self._deadline_s, metadata=self._metadata)
        return OK

    async def _send_project(self) -> str:
        async for _ in self._project(next(self._messages), timeout=self._deadline_s, metadata=self._metadata):
            pass
        return OK

    async def _cancel_classify(self) -> str:
        """Cancels the call, most likely while it waits for the engine."""
        call = self._classify(next(self._messages), timeout=self._deadline_s, metadata=self._metadata)
        await asyncio.sleep(CANCEL_AFTER_S)
        call.cancel()
        return str((await call.code()).name)

    async def _cancel_project(self) -> str:
        """Cancels the call after the first answer."""
        call = self._project(next(self._messages), timeout=self._deadline_s, metadata=self._metadata)
        await call.read()
        call.cancel()
        return str((await call.code()).name)


async def watch_health(target: str) -> str:
    """Watches the server's health on a new connection until the first answer, as a short-lived load balancer does."""
    async with balanced_channel(target, OWN_CONNECTION) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        health = await watch.read()
        watch.cancel()
    return OK if health.status == health_pb2.HealthCheckResponse.SERVING else "NOT_SERVING"


def client_sender(client: AsyncClient, messages: Sequence[bytes], deadline_s: float) -> Send:
    """Returns a function that makes `Classify` calls with the image files of `messages`."""
    files = cycle([pb.ClassifyRequest.FromString(message).image.encoded for message in messages])

    async def send() -> str:
        try:
            await client.classify(next(files), timeout_s=deadline_s)
        except ZfserveError as error:
            return THROTTLED if error.reason == throttle.THROTTLED else error.code.name
        return OK

    return send
