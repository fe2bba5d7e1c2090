"""From the first signal to the last answer: how both processes stop.

    stop = StopRequest()
    with stop.on_signals():
        await stop.wait()
        await drain(server, health, grace_s, stop, delay_s)

A second signal, while the drain runs, ends it at once.
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
"""Status of a process that ends because its device failed for good: a supervisor starts another."""


def exit_now(status: int) -> NoReturn:
    """Without waiting for threads: an interpreter that ends while a library computes may crash, or hang."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StopRequest:
    """That the process shall stop; asked for a second time, that it shall not wait for anyone."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._forced = asyncio.Event()

    def ask(self, reason: str) -> None:
        _log.info("stopping" if not self.asked else "stopping at once", extra={"reason": reason})
        if self.asked:
            self._forced.set()
        self._asked.set()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    async def wait(self) -> None:
        await self._asked.wait()

    async def wait_forced(self) -> None:
        await self._forced.wait()

    @contextmanager
    def on_signals(self, *signals: signal.Signals) -> Iterator[None]:
        """SIGTERM and SIGINT (or `signals`) ask, for as long as the block runs. Main thread, running loop."""
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
    """NOT_SERVING, wait until clients have gone elsewhere, refuse new calls, finish those accepted, close.

    Calls that still run after `grace_s`, or once `stop` is asked for a second time, are cancelled.

    Args:
        delay_s: how long calls are still taken after NOT_SERVING. gRPC ends those that meet its shutdown on the way
            CANCELLED, with which no client can do anything: by then none should come. Nobody can have gone elsewhere
            where nobody asked for health, so then there is no delay.
    """
    health.drain()
    insisting = asyncio.ensure_future(stop.wait_forced())
    if health.asked and delay_s:
        await asyncio.wait((insisting,), timeout=delay_s)
    # Refused by ourselves at first: gRPC's own stop ends CANCELLED what it has taken in and no handler has seen.
    server.refuse_calls()
    finished = asyncio.ensure_future(server.finished())
    health.end_watches()
    began = time.monotonic()
    await asyncio.wait((finished, insisting), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    finished.cancel()
    grace_s = max(0.0, grace_s - (time.monotonic() - began))
    stopping = asyncio.ensure_future(server.stop(grace_s))
    await asyncio.wait((stopping, insisting), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await server.stop(None)
    insisting.cancel()
    await stopping


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """For commands without an event loop: SIGTERM unwinds the stack, so that unfinished files are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
