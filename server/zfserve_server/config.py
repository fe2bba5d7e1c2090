"""Declares the settings of `zfserve serve`. `server_process` reads them, `app` uses them."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, get_args

from pydantic import Field
from zfserve_engines.contract import EngineName
from zfserve_engines.images.input_image import ImageLimits
from zfserve_engines.opening import InvalidEnginePolicy
from zfserve_protos.ports import METRICS_PORT, SERVICE_PORT
from zfserve_runtime.grpc.listener import LOOPBACK
from zfserve_runtime.grpc.options import MAX_CONNECTIONS
from zfserve_runtime.settings import Port, ProcessSettings

from zfserve_server.models.engine_choice import WantedEngine, WantedPrecision


class ServerConfig(ProcessSettings):
    """Holds every setting of `zfserve serve`. The descriptions are the command's help.

    Raises:
        ValidationError: names every fault at once.
    """

    environment_prefix = "ZFSERVE_"
    address_field = "host"
    sections: ClassVar = {
        "Models": ("model", "default_model", "keep_versions", "reload_interval", "strict_readiness"),
        "Listening": (
            *("host", "port", "allow_insecure", "metrics_host", "metrics_port"),
            *("max_connections", "max_connection_age"),
        ),
        "Callers": ("tls_cert", "tls_key", "tls_client_ca", "tokens"),
        "Engine": (
            *("engine", "precision", "threads", "instances", "max_batch_size"),
            *("engine_cache", "on_engine_refusal", "engine_timeout"),
        ),
        "Admission": (
            *("max_queue", "client_rate", "client_burst"),
            *("max_image_bytes", "max_image_pixels", "reference_ttl"),
        ),
        "Projections": (
            *("worker", "worker_device", "worker_address"),
            *("worker_tls_ca", "worker_tls_cert", "worker_tls_key"),
        ),
        "Logs and traces": ("log_format", "otlp_endpoint", "trace_ratio"),
        "Start and stop": ("ready_file", "drain_delay", "drain_grace"),
    }

    keep_versions: int = Field(
        1,
        ge=1,
        description="Number of versions of each model to serve: the newest ones that can serve. Older ones are "
        "retired.",
    )
    default_model: str | None = Field(
        None,
        description="Name of the model for requests that name none. If unset, the first model found at the start.",
    )
    reload_interval: float = Field(
        5.0,
        ge=0,
        description="Seconds between two checks for new versions. SIGHUP triggers a check at any time; with 0, only "
        "SIGHUP does.",
    )
    strict_readiness: bool = Field(
        True, description="Start only if every model that was found can serve. When off, one model is enough."
    )
    host: str = Field(LOOPBACK, description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: Port = Field(SERVICE_PORT, description="gRPC port; 0 takes a free port.")
    metrics_port: Port = Field(METRICS_PORT, description="Port of the Prometheus HTTP endpoint; 0 takes a free port.")
    engine: WantedEngine = Field(
        "auto",
        description=f"{', '.join(f'`{name}`' for name in get_args(EngineName))}, or `auto`: the best of these that "
        "can serve here.",
    )
    engine_cache: Path | None = Field(
        None, description="Folder of compiled engines. If unset, the folder `engines` inside the bundle."
    )
    on_engine_refusal: InvalidEnginePolicy = Field(
        "rebuild",
        description="`rebuild` a compiled engine that is stale, foreign or corrupted, or `refuse` it. After a refusal, "
        "`auto` goes on to the next engine.",
    )
    instances: int = Field(
        1, ge=1, le=16, description="Copies of the engine that run side by side on its device, from 1 to 16."
    )
    precision: WantedPrecision = Field(
        "auto",
        description="`fp32`, `fp16`, `int8` or `auto`. On a CPU, `auto` takes int8 if the bundle shows that int8 costs "
        "at most one point of accuracy. On a GPU, `auto` takes fp16 unless the bundle shows that fp16 costs more "
        "than that. Otherwise `auto` takes fp32.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of the engine. If unset, as many as the CPUs that this process or its container may "
        "use.",
    )
    max_batch_size: int = Field(16, ge=1, le=1024, description="Largest number of images in one run of the engine.")
    max_queue: int = Field(
        256,
        ge=1,
        description="Largest number of images of one model version that are accepted and not answered. Further "
        "requests are refused at once.",
    )
    client_rate: float | None = Field(
        None, gt=0, description="Largest number of requests per second from one client. If unset, there is no limit."
    )
    client_burst: int | None = Field(
        None,
        ge=1,
        description="Requests that a client may send at once. If unset, as many as --client-rate allows in one second.",
    )
    engine_timeout: float = Field(
        30.0, gt=0, description="Seconds that one run of the engine may take. An engine that hangs longer is replaced."
    )
    max_image_bytes: int = Field(ImageLimits.max_bytes, ge=1024, description="Largest image file accepted, in bytes.")
    max_image_pixels: int = Field(ImageLimits.max_pixels, ge=1, description="Largest image accepted, in pixels.")
    worker: bool = Field(
        True,
        description="Answer projections and explanations. Without --worker-address, the server starts a worker of its "
        "own.",
    )
    worker_device: str = Field(
        "cpu",
        description="Device of the worker that the server starts: `cpu`, `cuda`, `cuda:1` and so on, or `auto`, which "
        "takes a GPU if there is one.",
    )
    worker_address: str | None = Field(
        None,
        description="Address of a worker that was started elsewhere, or a name of several workers: `HOST:PORT` "
        "or `unix:PATH`.",
    )
    worker_tls_ca: Path | None = Field(
        None,
        description="PEM file of the authority that signed the worker's certificate. It turns on TLS to the worker.",
    )
    worker_tls_cert: Path | None = Field(
        None, description="PEM file of the certificate that the server shows to the worker."
    )
    worker_tls_key: Path | None = Field(None, description="PEM file of the private key of --worker-tls-cert.")
    reference_ttl: float = Field(600.0, gt=0, description="Seconds for which an unused image reference stays valid.")
    tokens: Path | None = Field(
        None,
        description="File that says who may call, and which methods. `zfserve token` writes it. If unset, anyone may "
        "call.",
    )
    max_connections: int = Field(
        MAX_CONNECTIONS, ge=1, description="Largest number of open connections. Further ones are closed at once."
    )
    max_connection_age: float | None = Field(
        None,
        gt=0,
        description="Seconds after which a client must connect again, and so finds new servers. If unset, connections "
        "stay open.",
    )
    trace_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of requests that the server traces, from 0 to 1, among those whose client sends no trace. "
        "If unset, OTEL_TRACES_SAMPLER applies; without both, all are traced.",
    )
    ready_file: Path | None = Field(None, description="File to write the ports to, as JSON, once requests are served.")

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        yield from self._both_or_neither("worker_tls_cert", "worker_tls_key")
        yield from self._needs("worker_tls_cert", "worker_tls_ca")
        yield from self._needs("worker_tls_ca", "worker_address")
        yield from self._needs("client_burst", "client_rate")
        if self.worker_address is not None and not self.worker:
            yield "--worker-address and --no-worker exclude each other"
        if self.port == self.metrics_port != 0:
            yield "--port and --metrics-port must differ"
