"""`zfserve worker` as a process of its own, joined over TCP."""

import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zfserve_cli.service_process import ServiceProcess, running_process


@contextmanager
def running_worker(
    model: Path, folder: Path, port: str, *flags: str, cpus: Collection[int] | None = None
) -> Iterator[ServiceProcess]:
    """Project `model` on a port of loopback, "0" for a free one; stopped when the block ends.

    Args:
        folder: for its log; a new one for each worker.
        flags: more of `zfserve worker`.
        cpus: the only ones it may use; None for all that this process may.

    Raises:
        ServiceFailed: it did not get ready.
    """
    log = folder / "worker.log"
    places = ("--listen", f"127.0.0.1:{port}", "--metrics-port", "0", "--log-format", "json")
    command = [sys.executable, "-m", "zfserve_worker", "--model", str(model), *places, *flags]
    with running_process(command, log, lambda: _said(log) is not None, cpus) as (pid, starting_s):
        said = _said(log)
        assert said is not None
        yield ServiceProcess(pid, said["address"], f"127.0.0.1:{said['metrics_port']}", starting_s, log)


def _said(log: Path) -> dict[str, Any] | None:
    """What the worker logged when it was ready, if it has."""
    *lines, _ = log.read_text(errors="replace").split("\n")  # the last one is not whole yet
    for line in lines:
        if line.startswith("{") and (said := json.loads(line))["message"] == "worker ready":
            return dict(said)
    return None
