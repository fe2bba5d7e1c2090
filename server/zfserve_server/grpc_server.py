"""Builds the gRPC server with both services and opens its port. Called by `app`.

`zfserve_runtime.grpc.server` takes each call first. It passes the request to a service in `requests`.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from zfserve_engines.images.input_image import ImageLimits
from zfserve_protos.inference.grpc_service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from zfserve_protos.methods import INFERENCE_SERVICE, VISION_SERVICE
from zfserve_protos.v1.zfserve_pb2_grpc import add_VisionServiceServicer_to_server
from zfserve_runtime.access.authorizer import Authorizer
from zfserve_runtime.cpus import available_cpus
from zfserve_runtime.grpc.health import Health, add_health_and_reflection
from zfserve_runtime.grpc.listener import host_and_port, open_port
from zfserve_runtime.grpc.options import server_options
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.otlp import open_tracing
from zfserve_runtime.telemetry.tracing import NO_TRACERS

from zfserve_server.admission.early_shedding import all_models_busy, early_checks
from zfserve_server.admission.rate_limit import RateLimit
from zfserve_server.config import ServerConfig
from zfserve_server.models.registry import ModelRegistry
from zfserve_server.requests.classification import ClassificationPipeline
from zfserve_server.requests.image_decoder import ImageDecoder
from zfserve_server.requests.inference_service import InferenceService
from zfserve_server.requests.photo_cache import PhotoCache
from zfserve_server.requests.projection_pipeline import ProjectionPipeline
from zfserve_server.requests.vision_service import VisionService
from zfserve_server.worker.client import WorkerClient

MAX_CACHED_PHOTOS = 256
"""The largest number of photos that are cached for later requests: 38 MB at 224x224."""

MESSAGE_SLACK_BYTES = 1024 * 1024
"""A request may be this much larger than the largest image. So it has room for other fields, and the server can read
an image that is slightly too large and answer which size is allowed."""


@dataclass(frozen=True)
class Ports:
    """Holds the ports of a server that is ready."""

    grpc: int
    metrics: int


def open_grpc_port(
    config: ServerConfig,
    models: ModelRegistry,
    worker: WorkerClient | None,
    health: Health,
    metrics: Metrics,
    stack: AsyncExitStack,
) -> tuple[InterceptingServer, int]:
    """Returns the gRPC server with all its services, not started, and its port.

    Args:
        worker: computes projections; None refuses them.
        stack: closes what the server uses.

    Raises:
        OSError: the address cannot be listened on.
        TlsError: the certificate or key cannot be used.
        CallersFileError: the file of callers cannot be used.
        TracingError: traces are wanted and cannot be sent.
    """
    authorizer = _open_authorizer(config)
    server = _build_server(config, authorizer, metrics, stack)
    rate_limit = RateLimit(config.client_rate, config.client_burst)
    decoder = stack.enter_context(_build_decoder(config))
    pipeline = ClassificationPipeline(models, rate_limit, decoder, metrics)
    projections = ProjectionPipeline(pipeline, worker)
    for method, check in early_checks(models).items():
        server.check_before_read(method, check, applies=partial(all_models_busy, models))
    add_VisionServiceServicer_to_server(VisionService(models, pipeline, projections), server)
    add_GRPCInferenceServiceServicer_to_server(InferenceService(models, pipeline, projections, health, metrics), server)
    add_health_and_reflection(server, health, VISION_SERVICE, INFERENCE_SERVICE)
    address = host_and_port(config.host, config.port)
    port = open_port(server, address, config.tls, callers_known=authorizer is not None, flag="--port")
    return server, port


def _open_authorizer(config: ServerConfig) -> Authorizer | None:
    """Returns the check of callers; None lets any caller in.

    Without a file of callers, a caller is named by the certificate that TLS has verified.
    """
    return None if config.tokens is None and config.tls_client_ca is None else Authorizer(config.tokens)


def _build_server(
    config: ServerConfig, authorizer: Authorizer | None, metrics: Metrics, stack: AsyncExitStack
) -> InterceptingServer:
    tracers = NO_TRACERS
    if config.otlp_endpoint is not None:
        tracers = stack.enter_context(open_tracing("zfserve-server", config.otlp_endpoint, config.trace_ratio))
    options = server_options(
        config.max_image_bytes + MESSAGE_SLACK_BYTES, config.max_connections, config.max_connection_age
    )
    return InterceptingServer(metrics, options, tracers, authorizer)


def _build_decoder(config: ServerConfig) -> ImageDecoder:
    limits = ImageLimits(config.max_image_bytes, config.max_image_pixels)
    return ImageDecoder(limits, PhotoCache(MAX_CACHED_PHOTOS, config.reference_ttl), available_cpus())
