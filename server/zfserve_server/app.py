"""The composition root of the server: builds all parts, serves until it is asked to stop, and drains.

`server_process` calls it with the settings and the models on disk. Tests call it with engines of their own.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack

from zfserve_engines.opening import Phase
from zfserve_protos.methods import PROJECTION
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineLost, ServiceError
from zfserve_runtime.grpc.health import Health
from zfserve_runtime.grpc.shutdown import StopRequest, drain
from zfserve_runtime.model_repository import group_by_model
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.metrics_endpoint import MetricsEndpoint

from zfserve_server.config import ServerConfig
from zfserve_server.grpc_server import Ports, open_grpc_port
from zfserve_server.models.loader import ModelLoader, ServingPolicy
from zfserve_server.models.readiness import SERVICES, Readiness
from zfserve_server.models.reconciler import Reconciler
from zfserve_server.models.registry import ModelRegistry
from zfserve_server.models.served_model import ServedModel
from zfserve_server.models.serving_set import ServingSet
from zfserve_server.models.source import ModelSource
from zfserve_server.models.startup_progress import StartupProgress, phase_service
from zfserve_server.worker.companion import connect_companion

logger = logging.getLogger(__name__)

OPENING_GRACE_S = 5.0
"""Seconds to wait, after the stop, for an engine that is opening. A compilation stops at its next step, but a call of a
library may go on."""


async def serve(
    config: ServerConfig,
    source: ModelSource,
    stop: StopRequest,
    on_ready: Callable[[Ports, ServedModel], None],
    rescan: asyncio.Event | None = None,
) -> None:
    """Opens the ports, loads the models, serves them and all later versions until `stop` is asked for, and drains.

    Args:
        config: the settings.
        source: finds the versions of models and opens them.
        stop: ends the service.
        on_ready: called with the default model once the models that were found at the start are served.
        rescan: set it to have the model folders scanned at once.

    Raises:
        BundleError, EngineUnavailable: the models that were found at the start cannot be served.
        EngineLost: an engine was lost. The server has drained; only a new process can serve again.
        StillOpening: `stop` was asked for while a library opened an engine, and the library did not return in time.
        OSError: an address cannot be listened on, or `on_ready` raised it.
        TlsError: a certificate or key cannot be used.
        CallersFileError: the file of callers cannot be used.
        TracingError: traces are wanted and cannot be sent.
    """
    found = await asyncio.to_thread(source.scan)
    _check_default_model(config.default_model, group_by_model(found))
    metrics = Metrics()
    health = Health(*SERVICES, PROJECTION, *map(phase_service, Phase))
    startup = StartupProgress(metrics, health)
    models = ModelRegistry(startup.refusal, config.default_model)
    readiness = Readiness(health, models)

    def on_engine_lost() -> None:
        readiness.set_engine_lost()
        stop.ask("an engine is lost")

    async with AsyncExitStack() as stack:
        companion = connect_companion(config, metrics, readiness.set_projection_available, stack)
        policy = ServingPolicy(
            config.max_queue, config.engine_timeout, on_engine_lost, on_stall=lambda stalled: readiness.update()
        )
        loader = ModelLoader(source.open, policy, metrics)
        serving = ServingSet(models, metrics, companion.announce, readiness.update)
        stack.push_async_callback(serving.close)
        reconciler = Reconciler(source.scan, loader, serving, models, metrics, config.keep_versions)
        server, port = open_grpc_port(config, models, companion.client, health, metrics, stack)
        endpoint = stack.enter_context(MetricsEndpoint(metrics, config.metrics_port, config.metrics_host))

        async def start() -> None:
            await reconciler.start(found, startup.enter, config.strict_readiness)
            default = _default_or_any(models)
            startup.ready(default.choice.name)
            readiness.set_started()
            on_ready(Ports(port, endpoint.port), default)

        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(run()) for run in companion.background]
            await server.start()
            logger.info("listening", extra={"port": port, "metrics_port": endpoint.port})
            starting = asyncio.ensure_future(start())
            if await _succeeds(starting, stop):
                reconciling = tasks.create_task(_reconcile(reconciler, config.reload_interval, rescan, on_engine_lost))
                await stop.wait()
                reconciling.cancel()
            loader.cancel()
            await drain(server, health, config.drain_grace, stop, config.drain_delay)
            for task in background:
                task.cancel()
        # A task group would wrap these errors in an ExceptionGroup, so they are raised after it.
        await loader.close(min(OPENING_GRACE_S, config.drain_grace))
        await serving.close()
        if not starting.cancelled():
            starting.result()
        if readiness.engine_lost or serving.engine_lost:
            raise EngineLost("an engine was lost; the log says how")


def _check_default_model(name: str | None, found: Collection[str]) -> None:
    """Raises BundleError if a default model is set and was not found."""
    if name is not None and name not in found:
        raise BundleError(f"--default-model is {name!r}; the model folders hold only {', '.join(found)}")


def _default_or_any(models: ModelRegistry) -> ServedModel:
    """Returns the default model, or any other model if a start that is not strict could not load the default."""
    try:
        return models.find()
    except ServiceError:
        return next(iter(models))


async def _succeeds(starting: "asyncio.Future[None]", stop: StopRequest) -> bool:
    """Waits for the start, and returns True if it succeeds. Cancels it if `stop` is asked for first."""
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
        logger.critical("a device failed permanently while a version was loaded", exc_info=True)
        on_engine_lost()
