"""Defines the command `zfserve worker`, which `python -m zfserve_worker` starts too.

gRPC reads its environment variable when it is first imported. So `add_arguments`, which is called first, sets it
before it imports the settings, which import grpc.
"""

import argparse
import os

from zfserve_runtime.tuning import disable_event_engine_listener


def add_arguments(parser: argparse.ArgumentParser) -> None:
    disable_event_engine_listener()
    from zfserve_worker.config import WorkerConfig

    WorkerConfig.add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serves projections until the process is asked to stop. Returns the exit status."""
    from zfserve_worker.worker_process import run_worker

    return run_worker(vars(arguments), os.environ)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zfserve_worker", description="Run the projection worker.")
    add_arguments(parser)
    return run(parser.parse_args())
