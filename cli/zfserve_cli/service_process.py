"""`zfserve serve` as a process of its own, for the demo and for the benchmarks that measure it from outside."""

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

STARTING_S = 120.0
"""The longest that a service may take to be ready, and its worker after it; seconds suffice on an idle machine."""

STOPPING_S = 45.0
"""Longer than it takes to finish what it accepted."""

LOOK_EVERY_S = 0.01

_COMMAND = (sys.executable, "-m", "zfserve_cli.main")


class ServiceFailed(RuntimeError):
    """The service ended, with the end of its log in the message, or was not ready in time."""


@dataclass(frozen=True)
class ServiceProcess:
    """A service that is ready.

    Attributes:
        address, metrics_address: of its ports, on loopback.
        starting_s: from the start of the process until requests were answered.
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
    """Serve `model` on a free port of loopback; stopped, with its worker, when the block ends.

    Args:
        folder: for its log and ready file; a new one for each service.
        flags: more of `zfserve serve`.
        cpus, own_session: see `running_process`.

    Raises:
        ServiceFailed: it did not get ready.
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
    """Its id, and the seconds that it took to be ready; SIGTERM when the block ends, and killed if that does not help.

    Args:
        log: gets its output.
        cpus: the only ones it may use; None for all that this process may.
        own_session: give it one, by which the kernel shares CPUs out as it does by containers. It outlives a terminal.

    Raises:
        ServiceFailed: it ended first, or needed too long.
    """
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=_environment(), start_new_session=own_session
        )
    confine(process, cpus)
    try:
        _await_ready(is_ready, process, log)
        yield process.pid, time.perf_counter() - began
    finally:
        process.terminate()
        try:
            process.wait(STOPPING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def confine(process: "subprocess.Popen[Any]", cpus: Collection[int] | None) -> None:
    """Let a process that has just begun use these CPUs only: it has no threads yet, and those to come inherit it. With
    None it may use all that this process may."""
    if cpus is not None:
        os.sched_setaffinity(process.pid, cpus)


def run_zfserve(*arguments: str) -> int:
    """Run the command line to its end, its output on ours; returns its status."""
    return subprocess.run([*_COMMAND, *arguments], env=_environment(), check=False).returncode


def _environment() -> dict[str, str]:
    """Ours without settings that are meant for another service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ZFSERVE_")}


def _await_ready(is_ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + STARTING_S
    while not is_ready():
        try:
            process.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
            raise ServiceFailed(f"the service was not ready within {STARTING_S:.0f} s; its log is {log}") from None
        last = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise ServiceFailed("the service ended before it was ready:\n" + "\n".join(last))
