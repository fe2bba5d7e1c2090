"""The channel to the workers, and a new one when the files of its TLS were replaced, or nobody is found. Opened by
`app`, used by `worker_client`; beside it, what the supervisor asks its own worker."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_runtime.access.tls import ClientTlsFiles, channel_credentials
from zfserve_runtime.grpc.options import ASK_THE_UNHEALTHY, worker_channel_options


class WorkerChannel:
    """gRPC's channels keep the credentials they were opened with, so new ones need another channel.

    Args:
        address: gRPC's name of one worker or of several.
        tls: None for none.
        grace_s: for calls under way on a channel that was replaced.

    Raises:
        TlsError: a file of the TLS cannot be used.
    """

    def __init__(self, address: str, tls: ClientTlsFiles | None, grace_s: float) -> None:
        self._address = address
        self._credentials = None if tls is None else channel_credentials(tls)
        self._grace_s = grace_s
        self._closing: set[asyncio.Task[None]] = set()
        self.current = self._open()

    def renewed(self, fresh: bool) -> grpc.aio.Channel | None:
        """A channel by the files as they are now, where those have changed, or where a fresh one is wanted anyway; the
        one before it ends with its calls."""
        changed = self._credentials is not None and self._credentials.look()
        if not (changed or fresh):
            return None
        closing = asyncio.ensure_future(self.current.close(self._grace_s))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self.current = self._open()
        return self.current

    async def close(self) -> None:
        for closing in self._closing:
            closing.cancel()
        await self.current.close()

    def _open(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, worker_channel_options())
        return grpc.aio.secure_channel(self._address, self._credentials.value, worker_channel_options())


async def worker_answers(address: str, within_s: float) -> bool:
    """Whether the worker at `address` says anything within that time, which includes the time until it listens."""
    options = [*worker_channel_options(), ASK_THE_UNHEALTHY]
    async with grpc.aio.insecure_channel(address, options) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=within_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return True
