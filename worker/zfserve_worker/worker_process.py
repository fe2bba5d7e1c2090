"""Runs the worker process: reads the settings, tunes the process, serves until a signal, and reports faults.

Called by `worker_command`.
"""

import asyncio
import logging
import sys
from collections.abc import Mapping

from zfserve_model.devices import NoSuchDevice
from zfserve_runtime.access.tls import TlsError
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.grpc.shutdown import EXIT_ENGINE_LOST, StopRequest, exit_now
from zfserve_runtime.settings import ConfigError
from zfserve_runtime.telemetry.logs import configure_logging
from zfserve_runtime.telemetry.otlp import TracingError
from zfserve_runtime.tuning import freeze_modules

from zfserve_worker.app import serve
from zfserve_worker.config import WorkerConfig

_log = logging.getLogger(__name__)


def run_worker(flags: Mapping[str, object], environment: Mapping[str, str]) -> int:
    """Serves projections until the process is asked to stop. Returns the exit status.

    Ends the process at once, with status `EXIT_ENGINE_LOST`, when the GPU failed permanently.
    """
    try:
        config = WorkerConfig.read(flags, environment)
        configure_logging(config.log_format, logging.getLevelNamesMapping()[config.log_level.upper()])
        freeze_modules()
        asyncio.run(_serve_until_signal(config))
    except EngineLost as error:
        _log.critical("%s; the process ends so that its supervisor starts another", error)
        exit_now(EXIT_ENGINE_LOST)
    except (ConfigError, BundleError, NoSuchDevice, OSError, TlsError, TracingError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


async def _serve_until_signal(config: WorkerConfig) -> None:
    stop = StopRequest()
    with stop.on_signals():
        await serve(config, stop)
