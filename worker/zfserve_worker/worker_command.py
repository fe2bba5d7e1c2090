"""The command `zfserve worker`, also started as `python -m zfserve_worker`. Prepares gRPC, then runs the worker.

The prepared variable counts only if it is set before grpc is first imported. So this module imports nothing that
imports grpc until it has set the variable.
"""

import argparse
import os

from zfserve_runtime.tuning import read_calls_without_pool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    read_calls_without_pool()
    from zfserve_runtime.settings import add_flags

    from zfserve_worker.config import WorkerConfig

    add_flags(parser, WorkerConfig)


def run(arguments: argparse.Namespace) -> int:
    """Serves projections until the process is asked to stop. Returns the exit status."""
    read_calls_without_pool()
    from zfserve_worker.worker_process import run_worker

    return run_worker(vars(arguments), os.environ)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zfserve_worker", description="Run the projection worker.")
    add_arguments(parser)
    return run(parser.parse_args())
