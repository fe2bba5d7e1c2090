"""Stops a process: it covers the time from the first signal to the last answer. Both processes use it.

    stop = StopRequest()
    with stop.on_signals():
        await stop.wait()
        await drain(server, health, grace_s, stop, delay_s)

A second signal ends the drain at once.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from zfserve_runtime.grpc.health import Health
from zfserve_runtime.grpc.server import InterceptingServer

_log = logging.getLogger(__name__)

EXIT_ENGINE_LOST = 3
"""The exit status of a process whose device failed permanently. A supervisor should start another process."""


def exit_now(status: int) -> NoReturn:
    """Ends the process without waiting for threads. A normal exit may crash or hang while a library still computes."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StopRequest:
    """Asks the process to stop. A second request forces it to stop without waiting for calls in flight."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._forced = asyncio.Event()

    def ask(self, reason: str) -> None:
        """Requests a stop. The log gets the reason."""
        _log.info("stopping" if not self.asked else "stopping at once", extra={"reason": reason})
        if self.asked:
            self._forced.set()
        self._asked.set()

    @property
    def asked(self) -> bool:
        """True once a stop was requested."""
        return self._asked.is_set()

    async def wait(self) -> None:
        """Waits for the first request."""
        await self._asked.wait()

    async def wait_forced(self) -> None:
        """Waits for the second request."""
        await self._forced.wait()

    @contextmanager
    def on_signals(self, *signals: signal.Signals) -> Iterator[None]:
        """Makes SIGTERM and SIGINT (or `signals`) request a stop while the block runs.

        Must be used in the main thread, with a running event loop.
        """
        loop = asyncio.get_running_loop()
        chosen = signals or (signal.SIGTERM, signal.SIGINT)
        for number in chosen:
            loop.add_signal_handler(number, self.ask, number.name)
        try:
            yield
        finally:
            for number in chosen:
                loop.remove_signal_handler(number)


async def drain(
    server: InterceptingServer, health: Health, grace_s: float, stop: StopRequest, delay_s: float = 0.0
) -> None:
    """Drains the server and stops it.

    Its steps are: set health to NOT_SERVING, wait `delay_s` for clients to go elsewhere, refuse new calls, wait for the
    calls in flight, and close the connections.

    Calls that are still in flight after `grace_s` seconds, or at a second request to stop, are cancelled.

    Args:
        delay_s: the seconds in which calls are still accepted after NOT_SERVING. gRPC answers CANCELLED to calls that
            arrive while it shuts down, and no client can handle that. So no call should arrive after the delay. If no
            client has ever asked for health, no client goes elsewhere, and there is no delay.
    """
    health.drain()
    forced = asyncio.ensure_future(stop.wait_forced())
    if health.queried and delay_s:
        await asyncio.wait((forced,), timeout=delay_s)
    # First we refuse calls ourselves. gRPC's stop answers CANCELLED to calls that no handler has seen yet.
    server.refuse_calls()
    drained = asyncio.ensure_future(server.drained())
    health.end_watches()
    began = time.monotonic()
    await asyncio.wait((drained, forced), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    grace_s = max(0.0, grace_s - (time.monotonic() - began))
    stopping = asyncio.ensure_future(server.stop(grace_s))
    await asyncio.wait((stopping, forced), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await server.stop(None)
    forced.cancel()
    await stopping


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit while the block runs, so that unfinished files are removed.

    It is for commands without an event loop.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
