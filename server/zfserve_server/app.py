"""The composition root of the server: builds every part, serves until asked to stop, drains.

Called by `serve_command` with settings and models on disk; by tests with engines of their own.
"""

import asyncio
import logging
import sys
import tempfile
from collections.abc import Callable, Collection, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from zfserve_engines.images.input_image import ImageLimits
from zfserve_engines.opening import Phase
from zfserve_protos.inference.grpc_service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from zfserve_protos.methods import INFERENCE_SERVICE, PROJECTION, VISION_SERVICE
from zfserve_protos.v1.zfserve_pb2_grpc import add_VisionServiceServicer_to_server
from zfserve_runtime.access.access import Access
from zfserve_runtime.access.tls import ClientTlsFiles
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.errors import EngineLost, ServiceError
from zfserve_runtime.grpc.health import Health, add_health_and_reflection
from zfserve_runtime.grpc.listener import host_and_port, open_port
from zfserve_runtime.grpc.options import server_options
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.grpc.shutdown import StopRequest, drain
from zfserve_runtime.model_repository import group_by_model
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.metrics_endpoint import MetricsEndpoint
from zfserve_runtime.telemetry.otlp import open_tracing
from zfserve_runtime.telemetry.tracing import NO_TRACERS

from zfserve_server.admission.early_shedding import all_models_busy, early_checks
from zfserve_server.admission.rate_limit import RateLimit
from zfserve_server.config import ServerConfig
from zfserve_server.models.loader import ModelLoader, ServingPolicy
from zfserve_server.models.readiness import SERVICES, Readiness
from zfserve_server.models.reconciler import Reconciler
from zfserve_server.models.registry import ModelRegistry
from zfserve_server.models.served_model import ServedModel
from zfserve_server.models.source import ModelSource
from zfserve_server.models.startup_progress import StartupProgress, phase_service
from zfserve_server.requests.classification import ClassificationPipeline
from zfserve_server.requests.decoding import Decoding
from zfserve_server.requests.inference_service import InferenceService
from zfserve_server.requests.references import References
from zfserve_server.requests.vision_service import VisionService
from zfserve_server.worker.channel import WorkerChannel
from zfserve_server.worker.client import WorkerClient
from zfserve_server.worker.probe import probe_worker
from zfserve_server.worker.supervisor import Supervisor

logger = logging.getLogger(__name__)

REFERENCES = 256
"""Photos kept for a later Project: 38 MB at 224x224."""

LONGEST_PROJECTION_S = 120.0

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
    source: ModelSource,
    stop: StopRequest,
    on_ready: Callable[[Ports, ServedModel], None],
    rescan: asyncio.Event | None = None,
) -> None:
    """Open the ports, load the models, and serve them and what comes after them until `stop` is asked; then drain.

    Args:
        on_ready: told the default model, once all that was found at the start is served.
        rescan: set it to have the model folders scanned at once.

    Raises:
        BundleError, EngineUnavailable: what was found at the start cannot be served.
        OSError: raised by `on_ready`; the server drained.
        EngineLost: an engine gave up for good; the server drained, and only a new process can serve again.
        StillOpening: `stop` was asked, and an engine that opens does not hear of it.
        OSError: an address cannot be listened on.
        TlsError: the certificate or key cannot be used.
        CallersFileError: the file of those who may call cannot be used.
        TracingError: traces are wanted and cannot be sent.
    """
    found = await asyncio.to_thread(source.scan)
    _check_default(config.default_model, group_by_model(found))
    metrics = Metrics()
    health = Health(*SERVICES, PROJECTION, *map(phase_service, Phase))
    startup = StartupProgress(metrics, health)
    models = ModelRegistry(startup.refusal, config.default_model)
    readiness = Readiness(health, models)

    def on_engine_lost() -> None:
        readiness.set_engine_lost()
        stop.ask("an engine is lost")

    async with AsyncExitStack() as stack:
        worker, background = await _companion(config, metrics, readiness.set_projection_available, stack)

        async def announce(fingerprints: Collection[str]) -> None:
            if worker is not None:
                await worker.announce(fingerprints)

        policy = ServingPolicy(
            config.max_queue,
            config.engine_timeout,
            on_engine_lost,
            on_stall=lambda stalled: readiness.update(),
        )
        loader = ModelLoader(source.open, policy, metrics)
        reconciler = Reconciler(source.scan, loader, models, metrics, config.keep_versions, announce, readiness.update)
        stack.push_async_callback(reconciler.close)
        access = _access(config)
        server = _server(config, metrics, access, stack)
        decoding = stack.enter_context(_decoding(config))
        rate_limit = RateLimit(config.client_rate, config.client_burst)
        pipeline = ClassificationPipeline(models, rate_limit, decoding, metrics)
        for method, check in early_checks(models).items():
            server.check_before_read(method, check, applies=partial(all_models_busy, models))
        add_VisionServiceServicer_to_server(VisionService(models, pipeline, worker), server)
        inference = InferenceService(models, pipeline, health, metrics)
        add_GRPCInferenceServiceServicer_to_server(inference, server)
        add_health_and_reflection(server, health, VISION_SERVICE, INFERENCE_SERVICE)
        port = open_port(
            server, host_and_port(config.host, config.port), config.tls, callers_known=access is not None, flag="--port"
        )
        endpoint = stack.enter_context(_metrics_endpoint(metrics, config))
        untold: OSError | None = None
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(run()) for run in background]
            await server.start()
            logger.info("listening", extra={"port": port, "metrics_port": endpoint.port})
            starting = asyncio.ensure_future(reconciler.start(found, startup.enter, config.strict_readiness))
            if await _succeeds(starting, stop):
                default = _default_or_any(models)
                startup.ready(default.choice.name)
                readiness.set_started()
                try:
                    on_ready(Ports(port, endpoint.port), default)
                except OSError as error:
                    untold = error
                    stop.ask("nobody can be told that it is ready")
                reconciling = tasks.create_task(_reconcile(reconciler, config.reload_interval, rescan, on_engine_lost))
                await stop.wait()
                reconciling.cancel()
            loader.cancel()
            await drain(server, health, config.drain_grace, stop, config.drain_delay)
            for task in running:
                task.cancel()
        # Not in the group: what is raised in there comes out wrapped.
        await loader.close(min(OPENING_GRACE_S, config.drain_grace))
        await reconciler.close()
        if not starting.cancelled():
            starting.result()
        if untold is not None:
            raise untold
        if readiness.engine_lost or reconciler.engine_lost:
            raise EngineLost("an engine was lost; the log says how")


def _check_default(name: str | None, found: Collection[str]) -> None:
    """Raises BundleError where there is no such model."""
    if name is not None and name not in found:
        raise BundleError(f"--default-model is {name!r}, and there is only {', '.join(found)}")


def _default_or_any(models: ModelRegistry) -> ServedModel:
    """The default one, unless it cannot be served and others can, which a start that is not strict is content with."""
    try:
        return models.find()
    except ServiceError:
        return next(iter(models))


async def _succeeds(starting: "asyncio.Future[None]", stop: StopRequest) -> bool:
    """Wait for the start, which is cancelled where `stop` comes first."""
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.asked:
        starting.cancel()
        await asyncio.wait((starting,))
        return False
    return starting.exception() is None


async def _reconcile(
    reconciler: Reconciler, interval_s: float, rescan: asyncio.Event | None, on_engine_lost: Callable[[], None]
) -> None:
    try:
        await reconciler.run(interval_s, rescan or asyncio.Event())
    except EngineLost:
        logger.critical("a device failed for good while a version was loaded", exc_info=True)
        on_engine_lost()


def _server(config: ServerConfig, metrics: Metrics, access: Access | None, stack: AsyncExitStack) -> InterceptingServer:
    tracers = NO_TRACERS
    if config.otlp_endpoint is not None:
        tracers = stack.enter_context(open_tracing("zfserve-server", config.otlp_endpoint, config.trace_ratio))
    options = server_options(
        config.max_image_bytes + MESSAGE_SLACK_BYTES, config.max_connections, config.max_connection_age
    )
    return InterceptingServer(metrics, options, tracers, access)


def _decoding(config: ServerConfig) -> Decoding:
    limits = ImageLimits(config.max_image_bytes, config.max_image_pixels)
    return Decoding(limits, References(REFERENCES, config.reference_ttl), available_cpus())


async def _companion(
    config: ServerConfig,
    metrics: Metrics,
    on_change: Callable[[bool], None],
    stack: AsyncExitStack,
) -> tuple[WorkerClient | None, list[Callable[[], Coroutine[None, None, None]]]]:
    """The client of the worker, and what has to run beside the server for it."""
    if not config.worker:
        return None, []
    address = config.worker_address
    supervised = address is None
    if address is None:
        # Only this user may enter the folder, and so reach the worker.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="zfserve-"))
        address = f"unix:{folder}/worker.sock"
    channel = WorkerChannel(address, _worker_tls(config), LONGEST_PROJECTION_S)
    stack.push_async_callback(channel.close)
    client = WorkerClient(channel.current, metrics, LONGEST_PROJECTION_S, on_change, renew_channel=channel.renew)
    if not supervised:
        return client, [client.watch]
    supervisor = Supervisor(
        worker_command(config, address),
        metrics,
        probe=partial(probe_worker, address),
    )
    return client, [client.watch, supervisor.run]


def worker_command(config: ServerConfig, address: str) -> list[str]:
    """The command line of a worker for the same folders, that holds what this server serves and no more."""
    return [
        *(sys.executable, "-m", "zfserve_worker"),
        *(part for folder in config.model for part in ("--model", str(folder))),
        *("--spare-networks", "0"),
        *("--drain-delay", "0"),  # there is no other to turn to
        *("--listen", address),
        *("--device", config.worker_device),
        *("--log-format", config.log_format),
        *(("--otlp-endpoint", config.otlp_endpoint) if config.otlp_endpoint is not None else ()),
        "--exit-with-parent",
    ]


def _access(config: ServerConfig) -> Access | None:
    """Who may call; None: anyone. A certificate that TLS has verified names its caller, with a file of them or not."""
    return None if config.tokens is None and config.tls_client_ca is None else Access(config.tokens)


def _worker_tls(config: ServerConfig) -> ClientTlsFiles | None:
    if config.worker_tls_ca is None:
        return None
    return ClientTlsFiles(config.worker_tls_ca, config.worker_tls_cert, config.worker_tls_key)


def _metrics_endpoint(metrics: Metrics, config: ServerConfig) -> MetricsEndpoint:
    try:
        return MetricsEndpoint(metrics, config.metrics_port, config.metrics_host.strip("[]"))
    except OSError as error:
        address = host_and_port(config.metrics_host, config.metrics_port)
        raise OSError(f"cannot listen on {address}; is it in use? choose another with --metrics-port") from error
