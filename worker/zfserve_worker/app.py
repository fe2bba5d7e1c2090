"""Builds the worker from its parts and runs it. Called by `worker_process`."""

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
from zfserve_worker.memory_limits import memory_limits
from zfserve_worker.network_cache import NetworkCache
from zfserve_worker.parent_process import watch_parent
from zfserve_worker.projector import open_projector
from zfserve_worker.service import WorkerService
from zfserve_worker.torch_thread import TorchThread

_log = logging.getLogger(__name__)

_CONNECTION_AGE_S = 300.0
"""The time after which a server must connect again, and so finds workers that were added."""


async def serve(config: WorkerConfig, stop: StopRequest, ready: asyncio.Future[str] | None = None) -> None:
    """Serves projections until `stop` is asked, then drains.

    Args:
        config: the settings.
        stop: ends the service.
        ready: gets the address once projections can be answered.

    Raises:
        BundleError: there is no usable bundle.
        NoSuchDevice: this machine does not have the device.
        OSError: the process cannot listen on an address, or standard input is not a pipe from a parent.
        TlsError: the certificate or key cannot be used.
        TracingError: traces are wanted and cannot be sent.
        EngineLost: the GPU failed permanently. All calls in flight have been answered.
    """
    device = choose_device(config.device)
    with ExitStack() as stack:
        if config.exit_with_parent:
            stack.enter_context(watch_parent(lambda: stop.ask("the parent process ended")))
        metrics = Metrics()
        endpoint = None
        if config.metrics_port is not None:
            endpoint = stack.enter_context(MetricsEndpoint(metrics, config.metrics_port, config.metrics_host))
        torch_thread = _torch_thread(config, device, stop)
        stack.callback(torch_thread.close)
        limits = memory_limits(config.cache, device)
        open_bundle = partial(open_projector, limits=limits, metrics=metrics, device=device)
        scan = ModelRepository(config.model).scan
        networks = NetworkCache(scan, open_bundle, torch_thread, config.spare_networks, metrics)
        await networks.start()

        tracers = NO_TRACERS
        if config.otlp_endpoint is not None:
            # The worker traces no request on its own: the servers that call it have decided which ones are traced.
            tracers = stack.enter_context(open_tracing("zfserve-worker", config.otlp_endpoint, ratio=0.0))
        server = InterceptingServer(metrics, server_options(max_connection_age_s=_CONNECTION_AGE_S), tracers)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(networks, torch_thread), server)
        health = Health(SERVER, WORKER_SERVICE)
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
                "models": [f"{manifest.name} {manifest.version}" for manifest in networks.manifests],
            },
        )
        if ready is not None:
            ready.set_result(address)
        await stop.wait()
        await drain(server, health, config.drain_grace, stop, config.drain_delay)
        if torch_thread.lost:
            raise EngineLost("the GPU failed permanently")


def _torch_thread(config: WorkerConfig, device: torch.device, stop: StopRequest) -> TorchThread:
    def on_lost() -> None:
        if not stop.asked:  # A second request would cancel calls that can still be answered.
            stop.ask("the GPU failed permanently")

    if device.type == "cuda":
        # PyTorch would round the inputs of convolutions to 11 bits. Projections must be the same as on the CPU.
        torch.backends.cudnn.allow_tf32 = False
    return TorchThread(config.threads or available_cpus(), config.queue, on_lost)


def _listen(server: grpc.aio.Server, config: WorkerConfig) -> str:
    """Binds the port. Returns the address, with the port that was taken if the settings left it open."""
    address = config.listen
    callers_known = config.tls is not None and config.tls.client_ca is not None
    port = open_port(server, address, config.tls, callers_known=callers_known, flag="--listen HOST:PORT or unix:PATH")
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
