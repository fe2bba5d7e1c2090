"""Runs the server process: reads the settings, tunes the process, serves until a signal, and reports faults.

Called by `serve_command`.
"""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.images.codec import silence_decoders
from zfserve_protos.ports import SERVICE_PORT
from zfserve_runtime.access.callers_file import CallersFileError
from zfserve_runtime.access.tls import TlsError
from zfserve_runtime.bundle import BundleError, Manifest
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.grpc.listener import host_and_port
from zfserve_runtime.grpc.shutdown import EXIT_ENGINE_LOST, StopRequest, exit_now
from zfserve_runtime.settings import ConfigError
from zfserve_runtime.telemetry.logs import configure_logging
from zfserve_runtime.telemetry.otlp import TracingError
from zfserve_runtime.tuning import freeze_modules, keep_freed_memory, run_on_uvloop

from zfserve_server.app import serve
from zfserve_server.config import ServerConfig
from zfserve_server.grpc_server import Ports
from zfserve_server.models.opening_thread import StillOpening
from zfserve_server.models.served_model import ServedModel
from zfserve_server.models.source import models_on_disk

logger = logging.getLogger(__name__)

DEFAULT_CLIENT_ADDRESS = f"127.0.0.1:{SERVICE_PORT}"
"""The address that `zfserve classify` calls without `--address`."""


def run_server(flags: Mapping[str, object], environment: Mapping[str, str]) -> int:
    """Serves until the process is asked to stop. Returns the exit status.

    Ends the process at once, with status `EXIT_ENGINE_LOST`, when an engine was lost permanently.
    """
    console = Console(stderr=True)
    try:
        config = ServerConfig.read(flags, environment)
        configure_logging(config.log_format)
        keep_freed_memory()
        silence_decoders()
        freeze_modules()
        run_on_uvloop(_serve_until_signal(config, console))
    except EngineLost as error:
        logger.critical("%s; the process ends so that its supervisor starts another", error)
        exit_now(EXIT_ENGINE_LOST)
    except (ConfigError, CallersFileError, BundleError, EngineUnavailable, OSError, TlsError, TracingError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except StillOpening:
        # A normal exit may crash while a library computes in a thread, so the process ends without one.
        logger.warning("the engine is still opening; the process ends without waiting for it")
        signal.raise_signal(signal.SIGTERM)
        exit_now(128 + signal.SIGTERM)  # The kernel does not deliver the signal to the first process of a container.
    return 0


def write_ready_file(file: Path, ports: Ports, host: str) -> None:
    """Writes the ports to `file` as JSON, whole or not at all. Another process can read it as soon as it exists."""
    text = json.dumps({"host": host, "port": ports.grpc, "metrics_port": ports.metrics, "pid": os.getpid()})
    if file.exists() and not file.is_file():  # A pipe or a device must not be replaced.
        file.write_text(text)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text)
    partial.replace(file)


async def _serve_until_signal(config: ServerConfig, console: Console) -> None:
    def on_ready(ports: Ports, model: ServedModel) -> None:
        _greet(console, config, model, ports)
        if config.ready_file is not None:
            write_ready_file(config.ready_file, ports, config.host)

    stop, rescan = StopRequest(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, rescan.set)
    with stop.on_signals():
        await serve(config, models_on_disk(config), stop, on_ready, rescan)


def _greet(console: Console, config: ServerConfig, model: ServedModel, ports: Ports) -> None:
    manifest, choice = model.manifest, model.choice
    address = host_and_port(config.host, ports.grpc)
    info = choice.instances[0].info
    option = "" if address == DEFAULT_CLIENT_ADDRESS else f" --address {address}"
    option += " --tls" * (config.tls is not None) + " --token-file FILE" * (config.tokens is not None)
    commands = commands_to_try(manifest, config.worker)
    console.print(
        f"[bold green]ready[/] {manifest.name} {manifest.version} ({choice.name}, {info.precision}, {info.device}) "
        f"on [bold]{address}[/]\n"
        + "".join(f"  zfserve {command}{option}\n" for command in commands)
        + f"  metrics at http://{host_and_port(config.metrics_host, ports.metrics)}/metrics; stop with Ctrl-C",
        highlight=False,
        soft_wrap=True,
    )


def commands_to_try(manifest: Manifest, with_worker: bool) -> tuple[str, ...]:
    """Returns the commands that a new user can try on this model, without `zfserve`."""
    explaining = ("explain photo.jpg", "project photo.jpg --save out/")
    return ("classify photo.jpg", *(explaining if with_worker and manifest.layers else ()))
