"""The command `zfserve worker`, also started as `python -m zfserve_worker`. Prepares gRPC, then runs the worker.

The prepared variable counts only if it is set before grpc is first imported. So this module imports nothing that
imports grpc until it has set the variable.
"""

import argparse
import os

<<<<<<< HEAD
from zfserve_model.devices import NoSuchDevice, choose_device
from zfserve_runtime.access.tls import TlsError, TlsFiles
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.garbage import set_modules_aside
from zfserve_runtime.grpc.lifecycle import LOST, StopRequest, end_at_once
from zfserve_runtime.grpc.listening import LOOPBACK, exposure_fault
from zfserve_runtime.telemetry.logs import LogFormat, configure_logging
from zfserve_runtime.telemetry.otlp import TracingError, endpoint_in

from zfserve_worker.app import WorkerConfig, serve

_log = logging.getLogger(__name__)
=======
from zfserve_runtime.tuning import read_calls_without_pool
>>>>>>> 625458f (One settings reader for server and worker: pydantic models give both their flags, variables and help)


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
