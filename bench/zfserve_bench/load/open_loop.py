"""Runs an open loop: calls begin at their times, even if earlier calls still run. Runs in the load process."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import grpc

from zfserve_bench.load.protocol import NOT_SENT, Call, Kind, OpenLoop, OpenLoopResult, Stream
from zfserve_bench.load.senders import Send, connect


class RunningOpenLoop:
    """Holds an open loop in progress.

    Args:
        requests: serialised requests by kind.
    """

    def __init__(self, target: str, requests: Mapping[Kind, Sequence[bytes]], order: OpenLoop) -> None:
        self._ended: list[Call] = []
        self._stop = asyncio.Event()
        self._began_s, self._began_cpu_s = time.monotonic(), time.process_time()
        self._run = asyncio.create_task(self._connect_and_run(target, requests, order))

    def take_ended_calls(self) -> list[Call]:
        """Returns the calls that have ended since this was last called."""
        taken, self._ended = self._ended, []
        return taken

    async def finish(self) -> OpenLoopResult:
        """Makes no more calls, waits for those in flight, and returns the calls that `take_ended_calls` has not
        returned.
        """
        seconds = time.monotonic() - self._began_s
        self._stop.set()
        await self._run
        return OpenLoopResult(self.take_ended_calls(), self._began_s, seconds, time.process_time() - self._began_cpu_s)

    async def _connect_and_run(self, target: str, requests: Mapping[Kind, Sequence[bytes]], order: OpenLoop) -> None:
        async with AsyncExitStack() as connections:
            senders = {
                stream: await connections.enter_async_context(connect(target, requests, stream, order))
                for stream in order.streams
            }
            await run_streams(senders, order, lambda call: self._ended.append(call), self._stop)


async def run_streams(
    senders: Mapping[Stream, Send], order: OpenLoop, record: Callable[[Call], object], stop: asyncio.Event
) -> None:
    """Makes the calls of all streams until `stop` is set, then waits for those in flight. A slow call delays no other.

    Args:
        senders: for each stream, the function that makes its next call.
        record: receives each call when it has ended.
    """
    in_flight = 0
    began_s = time.monotonic()

    async def call(stream: Stream, send: Send) -> None:
        nonlocal in_flight
        began_s = time.monotonic()
        in_flight += 1
        try:
            status = await send()
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        in_flight -= 1
        record(Call(stream.name, status, began_s, time.monotonic() - began_s))

    async def run(stream: Stream, send: Send, calls: asyncio.TaskGroup) -> None:
        chance, due_s = random.Random(stream.name), began_s
        while True:
            mean_s = 1 / stream.calls_per_s
            due_s += chance.expovariate(stream.calls_per_s) if order.random_arrivals else mean_s
            await asyncio.sleep(due_s - time.monotonic())
            if order.max_in_flight is not None and in_flight >= order.max_in_flight:
                record(Call(stream.name, NOT_SENT, time.monotonic(), 0.0))
            else:
                calls.create_task(call(stream, send))

    async with asyncio.TaskGroup() as calls:
        streams = [calls.create_task(run(stream, send, calls)) for stream, send in senders.items()]
        await stop.wait()
        for stream in streams:
            stream.cancel()
