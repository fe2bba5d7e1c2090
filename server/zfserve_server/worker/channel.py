"""Keeps the channel to the workers. Replaces it when its TLS files change or it finds no worker.

Built by `companion`.
"""

import asyncio

import grpc
from zfserve_runtime.access.tls import ClientTlsFiles, channel_credentials
from zfserve_runtime.grpc.options import worker_channel_options


class WorkerChannel:
    """Holds the current channel. A gRPC channel keeps its first credentials, so new credentials need a new channel.

    Args:
        address: the gRPC name of one worker or of several.
        tls: the TLS files; None for an insecure channel.
        grace_s: seconds that calls on a replaced channel may still take.

    Raises:
        TlsError: a TLS file cannot be used.
    """

    def __init__(self, address: str, tls: ClientTlsFiles | None, grace_s: float) -> None:
        self._address = address
        self._credentials = None if tls is None else channel_credentials(tls)
        self._grace_s = grace_s
        self._closing: set[asyncio.Task[None]] = set()
        self.current = self._open()

    def renew(self, force: bool) -> grpc.aio.Channel | None:
        """Replaces the channel if its TLS files have changed, or if `force` is True.

        Returns the new channel, or None if the current one stays. Calls on the replaced channel may finish.
        """
        changed = self._credentials is not None and self._credentials.reload_if_changed()
        if not (changed or force):
            return None
        closing = asyncio.ensure_future(self.current.close(self._grace_s))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self.current = self._open()
        return self.current

    async def close(self) -> None:
        """Closes the current channel, and ends the calls on replaced channels."""
        for closing in self._closing:
            closing.cancel()
        await self.current.close()

    def _open(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, worker_channel_options())
        return grpc.aio.secure_channel(self._address, self._credentials.value, worker_channel_options())
