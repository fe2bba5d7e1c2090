"""The worker process put together: the one place that knows all its parts. Called by `worker_command`."""

import asyncio
import logging
from contextlib import ExitStack
from functools import partial

import grpc
import torch
from zfserve_model.devices import choose_device
from zfserve_protos.methods import WORKER_SERVICE
from zfserve_protos.worker.v1 import worker_pb2_grpc
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.grpc.health import SERVER, Health, add_health_and_reflection
from zfserve_runtime.grpc.listener import open_port
from zfserve_runtime.grpc.options import server_options
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.grpc.shutdown import StopRequest, drain
from zfserve_runtime.model_repository import ModelRepository
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.metrics_endpoint import MetricsEndpoint
from zfserve_runtime.telemetry.otlp import open_tracing
from zfserve_runtime.telemetry.tracing import NO_TRACERS

from zfserve_worker.config import WorkerConfig
from zfserve_worker.networks import Networks
from zfserve_worker.parent import watch_parent
from zfserve_worker.projector import open_projector
from zfserve_worker.service import WorkerService
from zfserve_worker.torch_thread import TorchThread

_log = logging.getLogger(__name__)

_CONNECTION_AGE_S = 300.0
"""Then a server connects anew, and so finds the workers that were added."""


async def serve(config: WorkerConfig, stop: StopRequest, ready: asyncio.Future[str] | None = None) -> None:
    """Run until `stop` is asked for, then drain. `ready` gets the address once projections can be answered.

    Raises:
        BundleError: there is no usable bundle.
        NoSuchDevice: this machine does not have the device.
        OSError: an address cannot be listened on.
        TlsError: the certificate or key cannot be used.
        TracingError: traces are wanted and cannot be sent.
        EngineLost: the GPU failed for good; what was under way has been answered.
    """
    device = choose_device(config.device)
    with ExitStack() as stack:
        if config.exit_with_parent:
            stack.enter_context(watch_parent(lambda: stop.ask("the parent process ended")))
        metrics = Metrics()
        endpoint = None
        if config.metrics_port is not None:
            endpoint = stack.enter_context(MetricsEndpoint(metrics, config.metrics_port, config.metrics_host))

        def on_lost() -> None:
            if not stop.asked:  # a second time it would end calls that can still be told
                stop.ask("the GPU failed for good")

        torch_thread = TorchThread(config.threads or available_cpus(), config.queue, on_lost)
        stack.callback(torch_thread.close)
        if device.type == "cuda":  # as on the CPU: PyTorch would round what convolutions take in to 11 bits
            torch.backends.cudnn.allow_tf32 = False
        open_bundle = partial(open_projector, cached_traces=config.cache, metrics=metrics, device=device)
        look = ModelRepository(config.model).scan
        networks = Networks(look, open_bundle, torch_thread, config.spare_networks, metrics)
        await networks.start()

        health = Health(SERVER, WORKER_SERVICE)
        tracers = NO_TRACERS
        if config.otlp_endpoint is not None:
            # Nothing of its own accord: its callers, the servers, have decided which requests are traced.
            tracers = stack.enter_context(open_tracing("zfserve-worker", config.otlp_endpoint, ratio=0.0))
        server = InterceptingServer(metrics, server_options(max_connection_age_s=_CONNECTION_AGE_S), tracers)
        service = WorkerService(networks, torch_thread)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(service, server)
        add_health_and_reflection(server, health, WORKER_SERVICE)
        address = _listen(server, config)
        await server.start()
        health.serving(SERVER, WORKER_SERVICE)
        _log.info(
            "worker ready",
            extra={
                "address": address,
                "metrics_port": endpoint and endpoint.port,
                "device": str(device),
                "models": [f"{held.manifest.name} {held.manifest.version}" for held in networks.held],
            },
        )
        if ready is not None:
            ready.set_result(address)
        await stop.wait()
        await drain(server, health, config.drain_grace, stop, config.drain_delay)
        if torch_thread.lost:
            raise EngineLost("the GPU failed for good")


def _listen(server: grpc.aio.Server, config: WorkerConfig) -> str:
    """Bind, and say where: with the port that was taken where the address leaves the choice open."""
    address = config.listen
    callers_known = config.tls is not None and config.tls.client_ca is not None
    port = open_port(server, address, config.tls, callers_known=callers_known, flag="--listen HOST:PORT or unix:PATH")
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
