"""`zfserve serve`: a bundle in, a service on a port. Reads flags and environment, and says what went wrong."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import uvloop
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.image_codec import silence_decoders
from zfserve_runtime.access.callers_file import CallersFileError
from zfserve_runtime.access.tls import TlsError
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.garbage import set_modules_aside
from zfserve_runtime.grpc.lifecycle import LOST, StopRequest, end_at_once
from zfserve_runtime.grpc.listening import host_and_port
from zfserve_runtime.telemetry.logs import configure_logging
from zfserve_runtime.telemetry.otlp import TracingError, endpoint_in

from zfserve_server.allocator import keep_freed_memory
from zfserve_server.app import Ports, serve
from zfserve_server.config import ServerConfig
from zfserve_server.models.opening_thread import StillOpening
from zfserve_server.models.served_model import ServedModel
from zfserve_server.models.source import models_on_disk

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "ZFSERVE_"

CLIENTS_DEFAULT = "127.0.0.1:8500"
"""Where `zfserve classify` looks for a server unless told."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for every field of ServerConfig, whose values it checks."""
    parser.epilog = (
        f"Every flag can also be set in the environment: --max-queue as {ENVIRONMENT_PREFIX}MAX_QUEUE and so on. "
        "A flag wins over the environment."
    )
    for name, field in ServerConfig.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = (field.description or "").replace("%", "%%")
        if name == "model":
            parser.add_argument(flag, action="append", metavar="FOLDER", help=f"{text} (default: models/zfnet)")
        elif field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, default=None, metavar=_metavar(name), help=text + _default(field))


def run(arguments: argparse.Namespace) -> int:
    console = Console(stderr=True)
    try:
        config = read_config(vars(arguments), os.environ)
        configure_logging(config.log_format)
        keep_freed_memory()
        silence_decoders()
        set_modules_aside()
        # 0.15 ms less for a lone request than asyncio's own loop (docs/benchmarks.md).
        uvloop.run(_serve_until_signal(config, console))
    except EngineLost as error:
        logger.critical("%s; the process ends so that its supervisor starts another", error)
        end_at_once(LOST)
    except (ConfigError, CallersFileError, BundleError, EngineUnavailable, OSError, TlsError, TracingError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except StillOpening:
        # An interpreter that ends while a library computes in a thread may crash; this end leaves nothing to it.
        logger.warning("the engine is still opening; the process ends without waiting for it")
        signal.raise_signal(signal.SIGTERM)
        end_at_once(128 + signal.SIGTERM)  # of a container's first process the kernel keeps signals away
    return 0


class ConfigError(ValueError):
    """The settings cannot be used; the message lists every fault."""


def read_config(flags: Mapping[str, object], environment: Mapping[str, str]) -> ServerConfig:
    """Flags that were given, else the environment, else the defaults.

    Raises:
        ConfigError: names every fault at once.
    """
    values: dict[str, object] = {}
    variables: dict[str, str] = {}  # of the environment that are heeded, by the setting
    for name in ServerConfig.model_fields:
        value, variable = flags.get(name), ENVIRONMENT_PREFIX + name.upper()
        if value is None and environment.get(variable):
            value, variables[name] = environment[variable], variable
        if value is not None:
            values[name] = value
    values.setdefault("otlp_endpoint", endpoint_in(environment))
    try:
        return ServerConfig.model_validate(values)
    except ValidationError as error:
        faults = (_describe_fault(fault["loc"], fault["msg"], variables) for fault in error.errors())
        raise ConfigError("; ".join(faults)) from error


def write_ready_file(file: Path, ports: Ports, host: str) -> None:
    """Whole or not at all: whoever waits for the file can read it as soon as it is there."""
    text = json.dumps({"host": host, "port": ports.grpc, "metrics_port": ports.metrics, "pid": os.getpid()})
    if file.exists() and not file.is_file():  # a pipe or a device, which is not to be replaced
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
    option = "" if address == CLIENTS_DEFAULT else f" --address {address}"
    option += " --tls" * (config.tls is not None) + " --token-file FILE" * (config.tokens is not None)
    console.print(
        f"[bold green]ready[/] {manifest.name} {manifest.version} ({choice.name}, {info.precision}, {info.device}) "
        f"on [bold]{address}[/]\n"
        f"  zfserve classify photo.jpg{option}\n"
        f"  zfserve project photo.jpg --layer conv5 --top 9 --save out/{option}\n"
        f"  metrics at http://{host_and_port(config.metrics_host, ports.metrics)}/metrics; stop with Ctrl-C",
        highlight=False,
        soft_wrap=True,
    )


def _describe_fault(location: tuple[int | str, ...], message: str, variables: Mapping[str, str]) -> str:
    """Args: variables: of the environment that set something, by the setting."""
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name = str(location[0])
    return f"{variables.get(name, '--' + name.replace('_', '-'))}: {message}"


def _metavar(name: str) -> str:
    return name.rsplit("_", 1)[-1].upper()


def _default(field: FieldInfo) -> str:
    return "" if field.default is None else f" (default: {field.default})"


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="zfserve serve")
    add_arguments(_parser)
    sys.exit(run(_parser.parse_args()))
