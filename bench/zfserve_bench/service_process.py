"""`zfserve serve` as a process of its own, for the benchmarks that measure it from outside."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STARTING_S = 120.0
STOPPING_S = 30.0
LOOK_EVERY_S = 0.01


class ServiceFailed(RuntimeError):
    """The service ended, or was not ready in time; the message holds the end of its log."""


@dataclass(frozen=True)
class ServiceProcess:
    """A service that is ready.

    Attributes:
        address: of its gRPC port, on loopback.
        starting_s: from the start of the process until requests were answered.
    """

    pid: int
    address: str
    starting_s: float


@contextmanager
def running_service(model: Path, folder: Path, *flags: str) -> Iterator[ServiceProcess]:
    """Serve `model` on a free port of loopback; stopped, with its worker, when the block ends.

    Args:
        folder: for its log and ready file; a new one for each service.
        flags: more of `zfserve serve`.

    Raises:
        ServiceFailed: it did not get ready.
    """
    log, ready = folder / "service.log", folder / "service.ready"
    command = [
        *(sys.executable, "-m", "zfserve_client.cli", "serve", "--model", str(model), "--host", "127.0.0.1"),
        *("--port", "0", "--metrics-port", "0", "--ready-file", str(ready), *flags),
    ]
    # Settings meant for another service must not reach this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZFSERVE_")}
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        _wait_for(ready, process, log)
        starting_s = time.perf_counter() - began
        yield ServiceProcess(process.pid, f"127.0.0.1:{json.loads(ready.read_text())['port']}", starting_s)
    finally:
        process.terminate()
        try:
            process.wait(STOPPING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(ready: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + STARTING_S
    while not ready.exists():
        if process.poll() is None and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
            continue
        said = "\n".join(log.read_text(errors="replace").strip().splitlines()[-5:])
        raise ServiceFailed(f"the service was not ready; the end of its log:\n{said}")
