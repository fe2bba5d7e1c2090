"""Defines the command `zfserve serve`.

gRPC reads its environment variable when it is first imported. So `add_arguments`, which is called first, sets it
before it imports the settings, which import grpc.
"""

import argparse
import os

from zfserve_runtime.tuning import disable_event_engine_listener


def add_arguments(parser: argparse.ArgumentParser) -> None:
    disable_event_engine_listener()
    from zfserve_server.config import ServerConfig

    ServerConfig.add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serves until the process is asked to stop. Returns the exit status."""
    from zfserve_server.server_process import run_server

    return run_server(vars(arguments), os.environ)
