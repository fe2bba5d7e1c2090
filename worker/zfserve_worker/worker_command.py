"""`python -m zfserve_worker`: a bundle in, a projection worker on an address. `zfserve serve` starts it like this."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import get_args

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        metavar="FOLDER",
        help="of a bundle, of a model or of several models; more of them after a comma, or by giving the flag again "
        "(default: models/zfnet)",
    )
    parser.add_argument("--listen", default="localhost:8501", help="HOST:PORT or unix:PATH (default: %(default)s)")
    parser.add_argument(
        "--allow-insecure", action="store_true", help="listen on a public address without TLS; refused otherwise"
    )
    parser.add_argument("--tls-cert", metavar="PEM", type=Path, help="certificate chain; turns TLS on")
    parser.add_argument("--tls-key", metavar="PEM", type=Path, help="private key of --tls-cert")
    parser.add_argument("--tls-client-ca", metavar="PEM", type=Path, help="only servers with its certificates may call")
    parser.add_argument("--threads", type=_positive, help="of one torch operation (default: the CPUs this process has)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ..., or auto (default: %(default)s)")
    parser.add_argument("--metrics-port", type=_port, help="of the Prometheus endpoint (default: none)")
    parser.add_argument(
        "--metrics-host",
        default=LOOPBACK,
        help="its address, whose readers see them unencrypted (default: %(default)s)",
    )
    parser.add_argument(
        "--otlp-endpoint", metavar="URL", help="of an OpenTelemetry collector (default: OTEL_EXPORTER_OTLP_ENDPOINT)"
    )
    parser.add_argument("--queue", type=_positive, default=16, help="calls admitted at a time (default: %(default)s)")
    parser.add_argument(
        "--cache", type=_positive, default=8, help="forward passes kept of a network (default: %(default)s)"
    )
    parser.add_argument(
        "--spare-networks",
        type=_count,
        default=1,
        metavar="N",
        help="held beside those that a server has announced, or beside one of each model: others may still ask for "
        "the version before "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--drain-delay",
        type=_seconds,
        default=0.5,
        help="seconds that calls are still taken when stopping, for servers to turn to other workers "
        "(default: %(default)s)",
    )
    parser.add_argument("--drain-grace", type=_seconds, default=30.0, help="seconds to finish calls when stopping")
    parser.add_argument("--log-format", choices=get_args(LogFormat), default="console")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="stop when standard input, a pipe from the parent, is closed"
    )


def run(arguments: argparse.Namespace) -> int:
    configure_logging(arguments.log_format, logging.getLevelNamesMapping()[arguments.log_level.upper()])
    folders = arguments.model or ["models/zfnet"]
    try:
        config = WorkerConfig(
            models=tuple(Path(part) for folder in folders for part in folder.split(",") if part),
            listen=arguments.listen,
            threads=arguments.threads or available_cpus(),
            device=choose_device(arguments.device),
            queue=arguments.queue,
            cache=arguments.cache,
            spare_networks=arguments.spare_networks,
            grace_s=arguments.drain_grace,
            delay_s=arguments.drain_delay,
            metrics_port=arguments.metrics_port,
            metrics_host=arguments.metrics_host,
            tls=_tls(arguments),
            otlp_endpoint=arguments.otlp_endpoint or endpoint_in(os.environ),
            exit_with_parent=arguments.exit_with_parent,
        )
        set_modules_aside()
        asyncio.run(_serve_until_signal(config))
    except EngineLost as error:
        _log.critical("%s; the process ends so that its supervisor starts another", error)
        end_at_once(LOST)
    except (BundleError, NoSuchDevice, OSError, TlsError, TracingError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zfserve_worker", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


def _tls(arguments: argparse.Namespace) -> TlsFiles | None:
    """Raises TlsError where the flags do not agree, or the port would be public and unencrypted."""
    certificate, key, client_ca = arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca
    if (certificate is None) != (key is None):
        raise TlsError("--tls-cert and --tls-key go together")
    if client_ca is not None and certificate is None:
        raise TlsError("--tls-client-ca needs --tls-cert")
    if fault := exposure_fault("--listen", arguments.listen, certificate is not None, arguments.allow_insecure):
        raise TlsError(fault)
    return None if certificate is None else TlsFiles(certificate, key, client_ca)


async def _serve_until_signal(config: WorkerConfig) -> None:
    stop = StopRequest()
    with stop.on_signals():
        await serve(config, stop)


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _port(text: str) -> int:
    if not 0 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port")
    return number


def _seconds(text: str) -> float:
    if (number := float(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number
