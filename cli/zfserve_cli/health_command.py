"""`zfserve health` checks if a service is ready. Health checks of containers and scripts use it."""

import argparse
import sys

from zfserve.client import Client

from zfserve_cli.connection_arguments import add_connection_arguments
from zfserve_cli.exit_statuses import FAILED, OK
from zfserve_cli.service_call import call_service


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service",
        nargs="?",
        default="",
        help="a name that the server's health check knows, such as zfserve.v1.VisionService/Project "
        "(default: the whole server)",
    )
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    def check(client: Client) -> int:
        serving = client.is_serving(arguments.service)
        sys.stdout.write("SERVING\n" if serving else "NOT_SERVING\n")
        return OK if serving else FAILED

    return call_service(arguments, check)
