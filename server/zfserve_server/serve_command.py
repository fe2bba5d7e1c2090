"""`zfserve serve`: a bundle in, a service on a port. Reads flags and environment, and says what went wrong."""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from zfserve_runtime.bundle import Bundle, BundleError, Manifest, Precision, load_bundle
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.errors import EngineFailed, EngineLost
from zfserve_runtime.golden import verify_engine
from zfserve_runtime.lifecycle import StopRequest
from zfserve_runtime.logs import configure_logging
from zfserve_runtime.onnx_engine import CPU, OnnxEngine, choose_providers
from zfserve_runtime.tls import TlsError

from zfserve_server.app import Ports, serve
from zfserve_server.config import ServerConfig

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "ZFSERVE_"

LOST = 3
"""Exit status once an engine gave up for good, as a GPU does after an illegal access: worth a restart, as 2 is not."""

CLIENTS_DEFAULT = "127.0.0.1:8500"
"""Where `zfserve classify` looks for a server unless told."""

TOLERATED_LOSS = 0.01
"""Share of top-1 accuracy that `--precision auto` gives up for int8's speed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for every field of ServerConfig, whose values it checks."""
    parser.epilog = (
        f"Every flag can also be set in the environment: --max-queue as {ENVIRONMENT_PREFIX}MAX_QUEUE and so on. "
        "A flag wins over the environment."
    )
    for name, field in ServerConfig.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, default=None, metavar=_metavar(name), help=text + _default(field))


def run(arguments: argparse.Namespace) -> int:
    console = Console(stderr=True)
    try:
        config = read_config(vars(arguments), os.environ)
        configure_logging(config.log_format)
        bundle = load_bundle(config.model)
        engine = open_engine(config, bundle)
    except (ConfigError, BundleError, EngineFailed) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    try:
        asyncio.run(_serve_until_signal(config, bundle, engine, console))
    except (OSError, TlsError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except EngineLost as error:
        logger.critical("%s; the process ends so that its supervisor starts another", error)
        return LOST
    finally:
        engine.close()
    return 0


class ConfigError(ValueError):
    """The settings cannot be used; the message lists every fault."""


def read_config(flags: Mapping[str, object], environment: Mapping[str, str]) -> ServerConfig:
    """Flags that were given, else the environment, else the defaults.

    Raises:
        ConfigError: names every fault at once.
    """
    values: dict[str, object] = {}
    for name in ServerConfig.model_fields:
        value = flags.get(name)
        if value is None:
            value = environment.get(ENVIRONMENT_PREFIX + name.upper()) or None
        if value is not None:
            values[name] = value
    try:
        return ServerConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe_fault(fault["loc"], fault["msg"]) for fault in error.errors())) from error


def choose_precision(config: ServerConfig, manifest: Manifest, on_cpu: bool) -> Precision:
    """`auto` takes int8 on the CPU where the bundle's own figures show what it costs, and that it is little."""
    if config.precision != "auto":
        return config.precision
    top1 = {figure.precision: figure.top1 for figure in manifest.accuracy}
    measured = "int8" in manifest.artefacts and {"fp32", "int8"} <= top1.keys()
    if on_cpu and measured and top1["fp32"] - top1["int8"] <= TOLERATED_LOSS:
        return "int8"
    return "fp32"


def open_engine(config: ServerConfig, bundle: Bundle) -> OnnxEngine:
    """A warm engine whose outputs on the golden inputs are those recorded.

    Raises:
        BundleError: the bundle lacks the precision, or the engine disagrees with it.
        EngineFailed: the runtime cannot run on this machine.
    """
    engine = OnnxEngine(
        bundle,
        choose_precision(config, bundle.manifest, on_cpu=choose_providers()[0] == CPU),
        threads=config.threads or available_cpus(),
        max_batch_size=config.max_batch_size,
    )
    try:
        verify_engine(engine, bundle)
    except (BundleError, EngineFailed):
        engine.close()
        raise
    return engine


def write_ready_file(file: Path, ports: Ports, host: str) -> None:
    """Whole or not at all: whoever waits for the file can read it as soon as it is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(
        json.dumps({"host": host, "port": ports.grpc, "metrics_port": ports.metrics, "pid": os.getpid()})
    )
    partial.replace(file)


async def _serve_until_signal(config: ServerConfig, bundle: Bundle, engine: OnnxEngine, console: Console) -> None:
    def on_ready(ports: Ports) -> None:
        _greet(console, config, bundle.manifest, engine, ports)
        if config.ready_file is not None:
            write_ready_file(config.ready_file, ports, config.host)

    stop = StopRequest()
    with stop.on_signals():
        await serve(config, bundle, [engine], stop, on_ready)


def _greet(console: Console, config: ServerConfig, manifest: Manifest, engine: OnnxEngine, ports: Ports) -> None:
    address = f"{config.host}:{ports.grpc}"
    info = engine.info
    option = "" if address == CLIENTS_DEFAULT else f" --address {address}"
    console.print(
        f"[bold green]ready[/] {manifest.name} {manifest.version} ({info.precision}, {info.provider}, "
        f"{info.threads} threads) on [bold]{address}[/]\n"
        f"  zfserve classify photo.jpg{option}\n"
        f"  zfserve project photo.jpg --layer conv5 --top 9 --save out/{option}\n"
        f"  metrics at http://{config.host}:{ports.metrics}/metrics; stop with Ctrl-C",
        highlight=False,
        soft_wrap=True,
    )


def _describe_fault(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"--{str(location[0]).replace('_', '-')}: {message}" if location else message


def _metavar(name: str) -> str:
    return name.rsplit("_", 1)[-1].upper()


def _default(field: FieldInfo) -> str:
    return "" if field.default is None else f" (default: {field.default})"


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="zfserve serve")
    add_arguments(_parser)
    sys.exit(run(_parser.parse_args()))
