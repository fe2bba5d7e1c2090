"""Starts `zfserve serve` as a process, and stops it. The demo and some benchmarks use it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120.0
"""A service, and then its worker, must be ready within this many seconds. An idle machine needs some seconds."""

STOP_TIMEOUT_S = 45.0
"""A service that does not stop within this many seconds is killed. Its own grace period is shorter."""

POLL_INTERVAL_S = 0.01

_COMMAND = (sys.executable, "-m", "zfserve_cli.main")


class ServiceFailed(RuntimeError):
    """The service ended or was not ready in time. The message has the end of its log, or names the log."""


@dataclass(frozen=True)
class ServiceProcess:
    """Describes a service that is ready.

    Attributes:
        pid: the id of the process.
        address: the address of the gRPC port, on loopback.
        metrics_address: the address of the metrics port, on loopback.
        starting_s: the time from the start of the process until it was ready, in seconds.
        log: the file with its output.
    """

    pid: int
    address: str
    metrics_address: str
    starting_s: float
    log: Path


@contextmanager
def running_service(
    model: Path, folder: Path, *flags: str, cpus: Collection[int] | None = None, own_session: bool = False
) -> Iterator[ServiceProcess]:
    """Serves `model` on a free port of loopback. Stops the service and its worker when the block ends.

    Args:
        model: the folder of the bundle or of the model.
        folder: a folder for the log and the ready file. Each service needs its own.
        flags: more flags of `zfserve serve`.
        cpus: see `running_process`.
        own_session: see `running_process`.

    Raises:
        ServiceFailed: the service ended or was not ready in time.
    """
    log, ready = folder / "service.log", folder / "service.ready"
    ready.unlink(missing_ok=True)
    places = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--ready-file", str(ready))
    command = [*_COMMAND, "serve", "--model", str(model), *places, *flags]
    try:
        with running_process(command, log, ready.exists, cpus, own_session) as (pid, starting_s):
            ports = json.loads(ready.read_text())
            port, metrics_port = (f"127.0.0.1:{ports[name]}" for name in ("port", "metrics_port"))
            yield ServiceProcess(pid, port, metrics_port, starting_s, log)
    finally:
        ready.unlink(missing_ok=True)


@contextmanager
def running_process(
    command: Sequence[str],
    log: Path,
    is_ready: Callable[[], bool],
    cpus: Collection[int] | None = None,
    own_session: bool = False,
) -> Iterator[tuple[int, float]]:
    """Yields the id of the process, and the seconds until it was ready. Stops it when the block ends.

    SIGTERM stops the process. SIGKILL follows if it does not end in time.

    Args:
        command: the program and its arguments.
        log: the file for the output of the process.
        is_ready: returns True once the process is ready.
        cpus: the CPUs that the process may use. None means all CPUs of this process.
        own_session: True to start the process in a new session. The kernel then schedules the session as one group, as
            it does for a container. The process does not end with its terminal.

    Raises:
        ServiceFailed: the process ended or was not ready in time.
    """
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=_environment(), start_new_session=own_session
        )
    pin_to_cpus(process, cpus)
    try:
        _await_ready(is_ready, process, log)
        yield process.pid, time.perf_counter() - began
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pin_to_cpus(process: "subprocess.Popen[Any]", cpus: Collection[int] | None) -> None:
    """Lets a process use these CPUs only. Call it right after the start: later threads inherit the setting.

    Args:
        process: a process that has just begun and has no other threads yet.
        cpus: the CPUs. None changes nothing.
    """
    if cpus is not None:
        os.sched_setaffinity(process.pid, cpus)


def run_zfserve(*arguments: str) -> int:
    """Runs a command of `zfserve` to its end, with the output of this process. Returns the exit status."""
    return subprocess.run([*_COMMAND, *arguments], env=_environment(), check=False).returncode


def _environment() -> dict[str, str]:
    """Returns the environment of this process, without the settings of zfserve."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ZFSERVE_")}


def _await_ready(is_ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready():
        try:
            process.wait(POLL_INTERVAL_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
            raise ServiceFailed(f"the service was not ready within {START_TIMEOUT_S:.0f} s; its log is {log}") from None
        last = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise ServiceFailed("the service ended before it was ready:\n" + "\n".join(last))
