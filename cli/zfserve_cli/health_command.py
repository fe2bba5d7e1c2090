"""`zfserve health`: whether a service is ready. For containers' health checks and for scripts."""

import argparse
import sys

from zfserve.client import Client

from zfserve_cli.connection_arguments import add_connection_arguments, ask_service
from zfserve_cli.exit_statuses import FAILED, OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service",
        nargs="?",
        default="",
        help="a name that the server's health knows, such as zfserve.v1.VisionService/Project (default: the server)",
    )
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    def ask(client: Client) -> int:
        serving = client.is_serving(arguments.service)
        sys.stdout.write("SERVING\n" if serving else "NOT_SERVING\n")
        return OK if serving else FAILED

    return ask_service(arguments, ask)
