"""Runs `zfserve worker` as a separate process that listens on TCP."""

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
    """Runs a worker on a port of the loopback interface, until the block ends.

    Args:
        model: the folder of the bundle.
        folder: the folder of its log, a new one for each worker.
        port: the port; "0" for a free one.
        flags: further flags of `zfserve worker`.
        cpus: the CPUs that it may use; None for all that this process may use.

    Raises:
        ServiceFailed: the worker did not become ready.
    """
    log = folder / "worker.log"
    places = ("--listen", f"127.0.0.1:{port}", "--metrics-port", "0", "--log-format", "json")
    command = [sys.executable, "-m", "zfserve_worker", "--model", str(model), *places, *flags]
    with running_process(command, log, lambda: _ready_record(log) is not None, cpus) as (pid, starting_s):
        record = _ready_record(log)
        assert record is not None
        yield ServiceProcess(pid, record["address"], f"127.0.0.1:{record['metrics_port']}", starting_s, log)


def _ready_record(log: Path) -> dict[str, Any] | None:
    """Returns the record that the worker logged when it was ready, or None if it has not."""
    *lines, _ = log.read_text(errors="replace").split("\n")  # the last one may be incomplete
    for line in lines:
        if line.startswith("{") and (record := json.loads(line))["message"] == "worker ready":
            return dict(record)
    return None
