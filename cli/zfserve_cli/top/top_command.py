"""`zfserve top`: what a service does at present, live in a terminal.

Reads the metrics of its replicas, and asks nothing else of them.
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

from zfserve_cli.connection_arguments import seconds
from zfserve_cli.exit_statuses import FAILED, OK, UNREACHABLE
from zfserve_cli.top.replicas import Replicas, View
from zfserve_cli.top.screen import draw

DEFAULT_METRICS = "localhost:9500"

SPARKLINE = 60
"""Looks in it: a minute of them, at the usual interval."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        action="append",
        type=_address,
        help="where a server or a worker shows its metrics; repeat it for more, or give a name that stands for all "
        f"(default: {DEFAULT_METRICS})",
    )
    parser.add_argument("--interval", metavar="S", type=seconds, default=1.0, help="between two looks (%(default)g)")
    parser.add_argument(
        "--window", metavar="S", type=seconds, default=10.0, help="for rates and percentiles (%(default)g)"
    )
    parser.add_argument("--timeout", metavar="S", type=seconds, default=2.0, help="for one replica (%(default)g)")
    parser.add_argument("--once", action="store_true", help="look twice, an interval apart, and end")
    parser.add_argument("--json", action="store_true", help="each look as a JSON object on a line of its own")


def run(arguments: argparse.Namespace) -> int:
    """0; with --once, 1 where some replica cannot be looked at, and 3 where none can."""
    replicas = Replicas(arguments.metrics or [DEFAULT_METRICS], arguments.window, time.monotonic)
    views = _views(replicas, arguments.interval, arguments.timeout)
    history: deque[float] = deque(maxlen=SPARKLINE)
    console = Console()
    if arguments.once:
        next(views)
        view = next(views)
        if arguments.json:
            _print_json(view)
        else:
            console.print(draw(view, [view.newest_per_s], arguments.window))
        return OK if not view.unreachable else UNREACHABLE if view.total is None else FAILED
    with suppress(KeyboardInterrupt):  # Ctrl-C is how one leaves
        if arguments.json:
            for view in views:
                _print_json(view)
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as screen:
            for view in views:
                history.append(view.newest_per_s)
                screen.update(draw(view, history, arguments.window), refresh=True)
    return OK


def _views(replicas: Replicas, interval_s: float, timeout_s: float) -> Iterator[View]:
    """Without end, one each interval."""
    while True:
        began_s = time.monotonic()
        yield replicas.look(timeout_s)
        time.sleep(max(0.0, began_s + interval_s - time.monotonic()))


def _print_json(view: View) -> None:
    sys.stdout.write(json.dumps(asdict(view), separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _address(text: str) -> str:
    address = text.removeprefix("http://").removesuffix("/").removesuffix("/metrics")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not of the form HOST:PORT")
    return address
