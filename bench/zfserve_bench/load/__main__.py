"""The load process: `python -m zfserve_bench.load TARGET FOLDER`, started by `generator.LoadGenerator`.

It reads orders from standard input and answers each on standard output (see `protocol`), until standard input ends.
The clients of a real service run on other machines. So this process uses little CPU, because it may share the CPUs with
the service.
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from zfserve_protos.methods import CLASSIFY

from zfserve_bench.load.closed_loop import UnaryCall, run_closed_loop
from zfserve_bench.load.open_loop import RunningOpenLoop
from zfserve_bench.load.protocol import ClosedLoop, Kind, OpenLoop, read_requests
from zfserve_bench.load.senders import OWN_CONNECTION, balanced_channel


class LoadProcess:
    """Carries out the orders of a benchmark.

    Args:
        target: the address of the server, or the addresses of several servers, separated by commas.
        requests: serialised requests by kind.
    """

    def __init__(self, target: str, requests: Mapping[Kind, Sequence[bytes]]) -> None:
        self._target = target
        self._requests = requests
        self._clients: list[UnaryCall] = []
        self._open_loop: RunningOpenLoop

    async def carry_out(self, order: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to an order."""
        if order == "closed_loop":
            return await self._run_closed_loop(ClosedLoop(**arguments | {"kind": Kind(arguments["kind"])}))
        if order == "start":
            self._open_loop = RunningOpenLoop(self._target, self._requests, OpenLoop.from_json(arguments))
            return {}
        if order == "ended_calls":
            return {"calls": self._open_loop.take_ended_calls()}
        assert order == "finish", order
        return (await self._open_loop.finish())._asdict()

    async def _run_closed_loop(self, order: ClosedLoop) -> dict[str, Any]:
        while len(self._clients) < order.clients:
            self._clients.append(self._connect())
        try:
            return asdict(await run_closed_loop(self._clients, self._requests[order.kind], order))
        except* grpc.aio.AioRpcError as errors:
            answer = {"error": f"a call failed: {errors.exceptions[0]}"}
        return answer

    def _connect(self) -> UnaryCall:
        """Returns the method of one more client: on its own connection, or on the one channel to several servers."""
        if "," not in self._target:
            return grpc.aio.insecure_channel(self._target, [OWN_CONNECTION]).unary_unary(CLASSIFY)
        return self._clients[0] if self._clients else balanced_channel(self._target).unary_unary(CLASSIFY)


async def main(target: str, folder: Path) -> None:
    process, loop = LoadProcess(target, read_requests(folder)), asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        ((order, arguments),) = json.loads(line).items()
        answer = await process.carry_out(order, arguments)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
