"""Starts the load process and sends it orders. Benchmarks use it."""

import json
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from zfserve_cli.service_process import pin_to_cpus

from zfserve_bench.load.protocol import (
    Call,
    ClosedLoop,
    ClosedLoopResult,
    Kind,
    LoadFailed,
    OpenLoop,
    OpenLoopResult,
    write_requests,
)

BURST = 32
"""The number of counted calls is a multiple of this, and so a whole number of batches of any size that divides it."""


class LoadGenerator:
    """Starts a load process and sends it orders. Leaving the block ends the process.

    Args:
        target: the address of the server, or the addresses of several servers, separated by commas.
        requests: serialised requests by kind. Each stream or client sends those of its kind in turn.
        folder: an existing folder for the files of the requests.
        cpus: the CPUs that the process may use; None for all that this process may use.
    """

    def __init__(
        self,
        target: str,
        requests: Mapping[Kind, Sequence[bytes]],
        folder: Path,
        cpus: Collection[int] | None = None,
    ) -> None:
        write_requests(folder, requests)
        command = [sys.executable, "-m", "zfserve_bench.load", target, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        pin_to_cpus(self._process, cpus)
        self._calls: list[Call] = []

    def closed_loop(self, order: ClosedLoop) -> ClosedLoopResult:
        """Runs a closed loop to its end. Raises LoadFailed if a call fails."""
        return ClosedLoopResult(**self._send("closed_loop", asdict(order)))

    def saturating_loop(self, kind: Kind, clients: int, seconds: float) -> ClosedLoop:
        """Runs a short closed loop, and returns an order for one that takes about `seconds`. Raises LoadFailed."""
        guess = self.closed_loop(ClosedLoop(kind, clients, warm_up=clients, calls=max(clients, BURST)))
        return ClosedLoop(kind, clients, warm_up=2 * clients, calls=whole_bursts(guess.calls_per_s * seconds))

    def open_loop(self, order: OpenLoop, seconds: float) -> OpenLoopResult:
        """Runs an open loop for `seconds`, then waits for the calls in flight. Raises LoadFailed."""
        self.start(order)
        time.sleep(seconds)
        return self.finish()

    def start(self, order: OpenLoop) -> None:
        """Starts an open loop, which runs until `finish`. Raises LoadFailed."""
        self._calls = []
        self._send("start", asdict(order))

    def ended_calls(self) -> list[Call]:
        """Returns all calls of the open loop that have ended so far. Raises LoadFailed."""
        self._calls += [Call(*call) for call in self._send("ended_calls", {})["calls"]]
        return self._calls

    def finish(self) -> OpenLoopResult:
        """Ends the open loop: makes no more calls, and waits for those in flight. Raises LoadFailed."""
        result = self._send("finish", {})
        self._calls += [Call(*call) for call in result.pop("calls")]
        return OpenLoopResult(self._calls, **result)

    def _send(self, order: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None, "opened above"
        assert self._process.stdout is not None, "opened above"
        try:
            self._process.stdin.write(json.dumps({order: arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LoadFailed("the load generator died") from None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "the load generator died"}')
        if "error" in answer:
            raise LoadFailed(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()  # it holds nothing that needs a clean end
        try:
            self._process.communicate()
        except BrokenPipeError:  # the process had ended before an order was flushed
            self._process.wait()


def whole_bursts(calls: float) -> int:
    """Returns the nearest multiple of `BURST`, at least one."""
    return max(1, round(calls / BURST)) * BURST
