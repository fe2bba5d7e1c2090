"""This module runs the command line and the service as processes, as a user does."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from zfserve import Client

CLI = ("-m", "zfserve_cli.main")
"""The arguments that make Python run the command line."""

WORKER_S = 60
"""The seconds within which a worker must be ready."""

START_S = 60
"""The seconds after which a start counts as failed. A start takes far less."""


@dataclass(frozen=True)
class Service:
    """A running `zfserve serve`."""

    process: "subprocess.Popen[bytes]"
    address: str
    metrics_port: int
    log: Path


def zfserve(*arguments: str | Path, timeout_s: float = 100) -> "subprocess.CompletedProcess[str]":
    """Runs the command line in a process of its own."""
    command = [sys.executable, *CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@contextmanager
def running_service(
    bundle: Path, folder: Path, *flags: str, program: Sequence[str] = CLI, ends_with: int = 0
) -> Iterator[Service]:
    """Runs `zfserve serve` on free ports until the block ends. Then SIGTERM ends it with the exit status `ends_with`.

    Args:
        program: the arguments of Python before those of the command line.
    """
    ready, log = folder / "ready.json", folder / "service.log"
    command = [sys.executable, *program, "serve", "--model", str(bundle)]
    command += ["--port", "0", "--metrics-port", "0", "--ready-file", str(ready), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        for _ in range(START_S * 10):
            if ready.exists():
                break
            with_status = _ended_within(process, 0.1)
            assert not with_status, f"the service ended before it was ready:\n{log.read_text()}"
        assert ready.exists(), f"the service was never ready:\n{log.read_text()}"
        ports = json.loads(ready.read_text())
        yield Service(process, f"localhost:{ports['port']}", ports["metrics_port"], log)
    finally:
        if process.poll() is None:
            process.terminate()
        status = process.wait(timeout=60)
    assert status == ends_with, log.read_text()


def polling_pool_runs(pid: int, address: str, calls: int) -> int:
    """Returns how often threads of gRPC's polling pool ran in the process `pid` while it answered this many calls."""

    def runs() -> int:
        tasks = [
            task for task in Path(f"/proc/{pid}/task").iterdir() if (task / "comm").read_text() == "event_engine\n"
        ]
        return sum(int((task / "schedstat").read_text().split()[2]) for task in tasks)

    with grpc.insecure_channel(address) as channel:
        health = HealthStub(channel)
        health.Check(HealthCheckRequest(), timeout=30)
        before = runs()
        for _ in range(calls):
            health.Check(HealthCheckRequest(), timeout=30)
        return runs() - before


def wait_for_projections(client: Client, within_s: float = WORKER_S) -> None:
    """Waits until the worker of the client's service can project the default model."""
    deadline = time.monotonic() + within_s
    while not client.describe().projection_available:
        assert time.monotonic() < deadline, "the worker never became ready"
        time.sleep(0.1)


def _ended_within(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
