"""The command `zfserve serve`. Prepares gRPC, then reads the settings and runs the server.

The prepared variable counts only if it is set before grpc is first imported. So this module imports nothing that
imports grpc until it has set the variable.
"""

import argparse
import os

from zfserve_runtime.tuning import read_calls_without_pool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    read_calls_without_pool()
    from zfserve_runtime.settings import add_flags

    from zfserve_server.config import ServerConfig

    add_flags(parser, ServerConfig)


def run(arguments: argparse.Namespace) -> int:
    """Serves until the process is asked to stop. Returns the exit status."""
    read_calls_without_pool()
    from zfserve_server.server_process import run_server

    return run_server(vars(arguments), os.environ)
