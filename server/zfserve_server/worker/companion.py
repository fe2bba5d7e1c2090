"""Connects the server to its companion worker: one that it supervises, or workers elsewhere. Called by `app`."""

import sys
import tempfile
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from zfserve_runtime.access.tls import ClientTlsFiles
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.config import ServerConfig
from zfserve_server.worker.channel import WorkerChannel
from zfserve_server.worker.client import WorkerClient
from zfserve_server.worker.probe import probe_worker
from zfserve_server.worker.supervisor import ProbePolicy, Supervisor

LONGEST_PROJECTION_S = 120.0


@dataclass(frozen=True)
class Companion:
    """Holds the connection to the worker.

    Attributes:
        client: calls the worker; None where the server runs without one.
        background: coroutine functions that must run as long as the server.
    """

    client: WorkerClient | None = None
    background: Sequence[Callable[[], Coroutine[None, None, None]]] = ()

    async def announce(self, fingerprints: Collection[str]) -> None:
        """Tells the worker which networks the server serves, by their fingerprints."""
        if self.client is not None:
            await self.client.announce(fingerprints)


def connect_companion(
    config: ServerConfig, metrics: Metrics, on_change: Callable[[bool], None], stack: AsyncExitStack
) -> Companion:
    """Connects to the worker that the settings name. Needs a running event loop.

    Args:
        on_change: called with True when the worker can project all models that are served, with False when it cannot.
        stack: closes the connection.

    Raises:
        TlsError: a TLS file for the worker cannot be used.
    """
    if not config.worker:
        return Companion()
    address = config.worker_address
    if address is None:
        # Only this user may enter the folder, and so reach the worker.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zfserve-"))
        address = f"unix:{folder}/worker.sock"
    channel = WorkerChannel(address, _worker_tls(config), LONGEST_PROJECTION_S)
    stack.push_async_callback(channel.close)
    client = WorkerClient(channel.current, metrics, LONGEST_PROJECTION_S, on_change, renew_channel=channel.renew)
    if config.worker_address is not None:
        return Companion(client, [client.watch])
    supervisor = Supervisor(
        worker_command(config, address), metrics, probing=ProbePolicy(partial(probe_worker, address))
    )
    return Companion(client, [client.watch, supervisor.run])


def worker_command(config: ServerConfig, address: str) -> list[str]:
    """Returns the command line of a worker that holds the networks of this server and no others."""
    return [
        *(sys.executable, "-m", "zfserve_worker"),
        *(part for folder in config.model for part in ("--model", str(folder))),
        *("--spare-networks", "0"),
        *("--drain-delay", "0"),  # the server has no other worker to call meanwhile
        *("--listen", address),
        *("--device", config.worker_device),
        *("--log-format", config.log_format),
        *(("--otlp-endpoint", config.otlp_endpoint) if config.otlp_endpoint is not None else ()),
        "--exit-with-parent",
    ]


def _worker_tls(config: ServerConfig) -> ClientTlsFiles | None:
    if config.worker_tls_ca is None:
        return None
    return ClientTlsFiles(config.worker_tls_ca, config.worker_tls_cert, config.worker_tls_key)
