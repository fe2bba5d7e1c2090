"""The composition root of the server: builds every part, serves until asked to stop, drains.

Called by `serve_command` with settings and a bundle; by tests with an engine of their own.
"""

import asyncio
import logging
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
from zfserve_protos.v1.zfserve_pb2_grpc import add_VisionServiceServicer_to_server
from zfserve_runtime.access import Access
from zfserve_runtime.bundle import Bundle, Manifest
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.engine_catalogue import Phase
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.grpc_options import channel_options, server_options
from zfserve_runtime.health import PROJECTION, SERVER, VISION_SERVICE, Health, add_health_and_reflection
from zfserve_runtime.images import ImageLimits
from zfserve_runtime.interceptor import InterceptingServer
from zfserve_runtime.lifecycle import StopRequest, drain
from zfserve_runtime.listening import open_port
from zfserve_runtime.metrics import Metrics, MetricsEndpoint
from zfserve_runtime.tracing import open_tracing

from zfserve_server.admission import Admission
from zfserve_server.batcher import Batcher
from zfserve_server.config import ServerConfig
from zfserve_server.decoding import Decoding
from zfserve_server.engine_choice import EngineChoice
from zfserve_server.models import Models
from zfserve_server.references import References
from zfserve_server.served_model import ServedModel
from zfserve_server.service import VisionService
from zfserve_server.startup import OpenEngine, Startup, phase_service
from zfserve_server.supervisor import Supervisor
from zfserve_server.worker_client import WorkerClient

logger = logging.getLogger(__name__)

REFERENCES = 256
"""Photos kept for a later Project: 38 MB at 224x224."""

PROJECTIONS = 32
"""Project calls accepted and not answered; the worker has a shorter queue of its own."""

LONGEST_PROJECTION_S = 120.0

FIRST_GUESS_S = 0.05
"""Seconds for one request, until the first ones were measured."""

OPENING_GRACE_S = 5.0
"""For an engine that still opens, once asked to stop: a compilation hears of it at its next step, a library may not."""

MESSAGE_SLACK_BYTES = 1024 * 1024
"""What a request holds besides its image, and room to say of a slightly larger one how large it may be."""


@dataclass(frozen=True)
class Ports:
    """Where a server that is ready listens."""

    grpc: int
    metrics: int


async def serve(
    config: ServerConfig,
    bundle: Bundle,
    open_engine: OpenEngine,
    stop: StopRequest,
    on_ready: Callable[[Ports, EngineChoice], None],
) -> None:
    """Open the ports, then the engine, and serve `bundle` until `stop` is asked; then drain.

    Args:
        open_engine: gives warm engines whose golden outputs were verified. It runs in a thread, and whatever it raises
            passes through.

    Raises:
        EngineLost: an engine gave up for good; the server drained, and only a new process can serve again.
        StillOpening: `stop` was asked, and `open_engine` does not end.
        OSError: an address cannot be listened on.
        TlsError: the certificate or key cannot be used.
        CallersFileError: the file of those who may call cannot be used.
        TracingError: traces are wanted and cannot be sent.
    """
    manifest = bundle.manifest
    metrics, health = Metrics(), Health(SERVER, VISION_SERVICE, PROJECTION, *map(phase_service, Phase))
    metrics.model_info.labels(manifest.name, manifest.version, manifest.fingerprint).set(1)
    startup = Startup(metrics, health)
    async with AsyncExitStack() as stack:
        stack.callback(startup.cancel)
        models = Models(startup.refusal)

        def tell_of_projection(worker_ready: bool) -> None:
            can_project = worker_ready and len(models) > 0
            (health.serving if can_project else health.not_serving)(PROJECTION)

        def on_death() -> None:
            health.not_serving(SERVER, VISION_SERVICE)
            stop.ask("an engine is lost")

        worker, background = await _companion(config, bundle, metrics, tell_of_projection, stack)
        decoding = stack.enter_context(_decoding(config))
        service = VisionService(models, Admission(PROJECTIONS, FIRST_GUESS_S), decoding, worker, metrics)
        tracing = None
        if config.otlp_endpoint is not None:
            tracing = stack.enter_context(open_tracing("zfserve-server", config.otlp_endpoint, config.trace_ratio))
        options = server_options(
            config.max_image_bytes + MESSAGE_SLACK_BYTES, config.max_connections, config.max_connection_age
        )
        access = _access(config)
        server = InterceptingServer(metrics, options, tracing, access)
        add_VisionServiceServicer_to_server(service, server)
        add_health_and_reflection(server, health, VISION_SERVICE)
        port = open_port(server, f"{config.host}:{config.port}", config.tls, callers_known=access is not None)
        endpoint = stack.enter_context(_metrics_endpoint(metrics, config))
        batcher: Batcher | None = None
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(run()) for run in background]
            await server.start()
            logger.info("listening", extra={"port": port, "metrics_port": endpoint.port})
            choice = await startup.open(open_engine, stop)
            if choice is not None:
                stack.callback(choice.close)
                of_model = metrics.of_model(manifest.name, manifest.version)
                batcher = Batcher(choice.instances, _row_shape(manifest), of_model, on_death)
                of_model.queue_depth.set_function(lambda: models.waiting)
                stack.push_async_callback(batcher.close)
                batcher.start()
                admission = Admission(config.max_queue, FIRST_GUESS_S)
                models.add(ServedModel(manifest, choice, batcher, admission, of_model, startup.ready(choice)))
                health.serving(SERVER, VISION_SERVICE)
                tell_of_projection(worker is not None and worker.ready)
                on_ready(Ports(port, endpoint.port), choice)
                await stop.wait()
            await drain(server, health, config.drain_grace, stop, config.drain_delay)
            for task in running:
                task.cancel()
        # Not in the group: what is raised in there comes out wrapped.
        if batcher is None:
            await startup.conclude(min(OPENING_GRACE_S, config.drain_grace))
        elif batcher.lost:
            raise EngineLost("an engine was lost; the log says how")


def _row_shape(manifest: Manifest) -> tuple[int, int, int]:
    return manifest.input.height, manifest.input.width, 3


def _decoding(config: ServerConfig) -> Decoding:
    limits = ImageLimits(config.max_image_bytes, config.max_image_pixels)
    return Decoding(limits, References(REFERENCES, config.reference_ttl), available_cpus())


async def _companion(
    config: ServerConfig, bundle: Bundle, metrics: Metrics, on_change: Callable[[bool], None], stack: AsyncExitStack
) -> tuple[WorkerClient | None, list[Callable[[], Coroutine[None, None, None]]]]:
    """The client of the worker, and what has to run beside the server for it."""
    if not config.worker:
        return None, []
    address = config.worker_address
    supervisor: Supervisor | None = None
    if address is None:
        # Only this user may enter the folder, and so reach the worker.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zfserve-"))
        address = f"unix:{folder}/worker.sock"
        supervisor = Supervisor(worker_command(bundle, address, config), metrics)
    channel = await stack.enter_async_context(_worker_channel(address, config))
    client = WorkerClient(channel, bundle.manifest.fingerprint, LONGEST_PROJECTION_S, on_change)
    return client, [client.watch] if supervisor is None else [client.watch, supervisor.run]


def worker_command(bundle: Bundle, address: str, config: ServerConfig) -> list[str]:
    """The command line of a worker for this very bundle, even if a newer version appears beside it."""
    return [
        *(sys.executable, "-m", "zfserve_worker"),
        *("--model", str(bundle.folder)),
        *("--listen", address),
        *("--log-format", config.log_format),
        *(("--otlp-endpoint", config.otlp_endpoint) if config.otlp_endpoint is not None else ()),
        "--exit-with-parent",
    ]


def _access(config: ServerConfig) -> Access | None:
    """Who may call; None: anyone. A certificate that TLS had to verify names its caller, with a file of callers or not."""
    return None if config.tokens is None and config.tls_client_ca is None else Access(config.tokens)


def _worker_channel(address: str, config: ServerConfig) -> grpc.aio.Channel:
    """Raises OSError where a file of the TLS towards the worker cannot be read."""
    if config.worker_tls_ca is None:
        return grpc.aio.insecure_channel(address, channel_options())
    ca, key, certificate = (
        None if file is None else file.read_bytes()
        for file in (config.worker_tls_ca, config.worker_tls_key, config.worker_tls_cert)
    )
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), channel_options())


def _metrics_endpoint(metrics: Metrics, config: ServerConfig) -> MetricsEndpoint:
    try:
        return MetricsEndpoint(metrics, config.metrics_port, config.metrics_host)
    except OSError as error:
        address = f"{config.metrics_host}:{config.metrics_port}"
        raise OSError(f"cannot listen on {address}; is it in use? choose another with --metrics-port") from error
