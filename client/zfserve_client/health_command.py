"""`zfserve health`: whether a service is ready. For containers' health checks and for scripts."""

import argparse
import sys

from rich.console import Console
from rich.markup import escape

from zfserve_client.cli import FAILED, OK, UNUSABLE
from zfserve_client.connection_arguments import add_connection_arguments, exit_status, explain, open_client
from zfserve_client.errors import ZfserveError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service",
        nargs="?",
        default="",
        help="a name that the server's health knows, such as zfserve.v1.VisionService/Project (default: the server)",
    )
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    messages = Console(stderr=True)
    try:
        client = open_client(arguments)
    except (OSError, ValueError) as error:
        messages.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return UNUSABLE
    try:
        with client:
            serving = client.is_serving(arguments.service)
    except ZfserveError as error:
        messages.print(f"[red]error:[/] {escape(explain(error, arguments))}", soft_wrap=True)
        return exit_status(error)
    sys.stdout.write("SERVING\n" if serving else "NOT_SERVING\n")
    return OK if serving else FAILED
