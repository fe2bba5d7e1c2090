"""`zfserve top` shows the load, the latency and the batches of a service, live in a terminal.

It only reads the metrics of the replicas. It sends them no calls.
"""

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict

from rich.console import Console
from rich.live import Live
from zfserve_protos.ports import METRICS_PORT

from zfserve_cli.connection_arguments import seconds
from zfserve_cli.exit_statuses import FAILED, OK, UNREACHABLE
from zfserve_cli.top.replicas import Replicas, Snapshot
from zfserve_cli.top.screen import draw

DEFAULT_METRICS = f"localhost:{METRICS_PORT}"

HISTORY = 60
"""The sparkline shows this many scrapes: one minute at the default interval."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        action="append",
        type=_address,
        help="address of the metrics of a server or a worker; repeat it for several, or give one name for all "
        f"(default: {DEFAULT_METRICS})",
    )
    for flag, default, text in (
        ("--interval", 1.0, "seconds between two scrapes"),
        ("--window", 10.0, "seconds over which rates and percentiles are computed"),
        ("--timeout", 2.0, "longest time for one replica, in seconds"),
    ):
        parser.add_argument(flag, metavar="S", type=seconds, default=default, help=f"{text} (default: %(default)g)")
    parser.add_argument("--once", action="store_true", help="scrape twice, an interval apart, print the result and end")
    parser.add_argument("--json", action="store_true", help="print each result as a JSON document on its own line")


def run(arguments: argparse.Namespace) -> int:
    """Returns OK. With --once it returns FAILED if some replica is unreachable, and UNREACHABLE if all are."""
    replicas = Replicas(arguments.metrics or [DEFAULT_METRICS], arguments.window, time.monotonic)
    snapshots = _snapshots(replicas, arguments.interval, arguments.timeout)
    history: deque[float] = deque(maxlen=HISTORY)
    console = Console()
    if arguments.once:
        next(snapshots)
        snapshot = next(snapshots)
        if arguments.json:
            _print_json(snapshot)
        else:
            console.print(draw(snapshot, [snapshot.newest_per_s], arguments.window))
        return OK if not snapshot.unreachable else UNREACHABLE if snapshot.total is None else FAILED
    with suppress(KeyboardInterrupt):  # Ctrl-C is the way to leave
        if arguments.json:
            for snapshot in snapshots:
                _print_json(snapshot)
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as screen:
            for snapshot in snapshots:
                history.append(snapshot.newest_per_s)
                screen.update(draw(snapshot, history, arguments.window), refresh=True)
    return OK


def _snapshots(replicas: Replicas, interval_s: float, timeout_s: float) -> Iterator[Snapshot]:
    """Yields a snapshot at each interval, without end."""
    while True:
        began_s = time.monotonic()
        yield replicas.scrape(timeout_s)
        time.sleep(max(0.0, began_s + interval_s - time.monotonic()))


def _print_json(snapshot: Snapshot) -> None:
    sys.stdout.write(json.dumps(asdict(snapshot), separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _address(text: str) -> str:
    address = text.removeprefix("http://").removesuffix("/").removesuffix("/metrics")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not HOST:PORT")
    return address
