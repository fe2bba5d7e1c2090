"""The server's settings, validated as a whole. Read from flags and environment by `serve_command`, used by `app`."""

from pathlib import Path
from typing import Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from zfserve_engines.catalogue import EngineName, OnRefusal
from zfserve_engines.images import ImageLimits
from zfserve_runtime.access.tls import TlsFiles
from zfserve_runtime.grpc.listening import LOOPBACK, exposure_fault
from zfserve_runtime.grpc.options import MAX_CONNECTIONS
from zfserve_runtime.telemetry.logs import LogFormat

from zfserve_server.models.engine_choice import WantedEngine, WantedPrecision


class ServerConfig(BaseModel):
    """Every setting of `zfserve serve`; the descriptions are the command's help.

    Raises:
        ValidationError: names every fault at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: tuple[Path, ...] = Field(
        (Path("models/zfnet"),),
        min_length=1,
        description="folder of a bundle, of a model (its versions below it) or of several models; more of them after "
        "a comma, or by giving the flag again",
    )
    keep_versions: int = Field(1, ge=1, description="of every model, the newest that can serve; the others are retired")
    default_model: str | None = Field(
        None, description="name of the model for requests that name none; by default the first one found at the start"
    )
    reload_interval: float = Field(
        5.0,
        ge=0,
        description="seconds between two looks for new versions; 0: only at SIGHUP, which always has one taken",
    )
    strict_readiness: bool = Field(
        True, description="do not start unless every model found can serve; otherwise unless one can"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    allow_insecure: bool = Field(False, description="listen on a public address without TLS; refused otherwise")
    port: int = Field(8500, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9500, ge=0, le=65535, description="Prometheus HTTP port; 0 takes a free one")
    metrics_host: str = Field(
        LOOPBACK,
        description="address of the metrics, which anyone who reaches it may read, unencrypted; 0.0.0.0 for all",
    )
    engine: WantedEngine = Field(
        "auto", description=f"{', '.join(get_args(EngineName))}, or auto: the best of these that can serve here"
    )
    engine_cache: Path | None = Field(
        None, description="folder of compiled engines; by default `engines` in the bundle's folder"
    )
    on_engine_refusal: OnRefusal = Field(
        "rebuild",
        description="rebuild a compiled engine that is stale, foreign or corrupted, or refuse it: auto then goes on to "
        "the next engine",
    )
    instances: int = Field(1, ge=1, le=16, description="of the engine, side by side on its device")
    precision: WantedPrecision = Field(
        "auto",
        description="fp32, fp16, int8, or auto: int8 on a CPU where the bundle shows that it costs at most a point of "
        "accuracy, fp16 on a GPU unless it shows that it costs more, else fp32",
    )
    threads: int | None = Field(None, ge=1, description="of the engine; by default the CPUs this container may use")
    max_batch_size: int = Field(16, ge=1, le=1024, description="most images in one run of the engine")
    max_queue: int = Field(256, ge=1, description="most requests accepted and not answered; more are refused at once")
    client_rate: float | None = Field(None, gt=0, description="most requests a second of one client; by default any")
    client_burst: int | None = Field(
        None, ge=1, description="requests that a client may send at once; by default those of one second"
    )
    engine_timeout: float = Field(
        30.0, gt=0, description="seconds that one run of the engine may take; one that hangs is replaced by a fresh one"
    )
    max_image_bytes: int = Field(ImageLimits.max_bytes, ge=1024, description="largest image accepted, in bytes")
    max_image_pixels: int = Field(ImageLimits.max_pixels, ge=1, description="largest image accepted, in pixels")
    worker: bool = Field(True, description="answer projections; without --worker-address by a worker started here")
    worker_device: str = Field(
        "cpu", description="where the worker that is started here computes: cpu, cuda, cuda:1 ..., or auto"
    )
    worker_address: str | None = Field(None, description="of a worker started elsewhere: HOST:PORT or unix:PATH")
    worker_tls_ca: Path | None = Field(None, description="PEM authority of the worker's certificate; turns TLS on")
    worker_tls_cert: Path | None = Field(None, description="PEM certificate to show to the worker")
    worker_tls_key: Path | None = Field(None, description="PEM private key of --worker-tls-cert")
    reference_ttl: float = Field(600.0, gt=0, description="seconds that an unused image reference stays valid")
    tls_cert: Path | None = Field(None, description="PEM certificate chain; turns TLS on")
    tls_key: Path | None = Field(None, description="PEM private key of --tls-cert")
    tls_client_ca: Path | None = Field(None, description="PEM authority; only clients with its certificates may call")
    tokens: Path | None = Field(
        None, description="file of those who may call, and what; written by `zfserve token`. By default anyone may"
    )
    max_connections: int = Field(MAX_CONNECTIONS, ge=1, description="open at a time; more are closed at once")
    max_connection_age: float | None = Field(
        None,
        gt=0,
        description="seconds until a client must connect anew, and so learns of new servers; by default never",
    )
    log_format: LogFormat = Field("console", description="how log lines look")
    otlp_endpoint: str | None = Field(
        None,
        description="send traces to this OpenTelemetry collector, http://HOST:4317 (OTLP over gRPC); by default what "
        "OTEL_EXPORTER_OTLP_ENDPOINT says, else none",
    )
    trace_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share traced of the requests whose client does not trace them; by default what "
        "OTEL_TRACES_SAMPLER says, else all",
    )
    drain_delay: float = Field(
        0.5,
        ge=0,
        description="seconds that calls are still taken once health says NOT_SERVING, for clients to turn elsewhere; "
        "none where nobody ever asked for health",
    )
    drain_grace: float = Field(30.0, ge=0, description="seconds to answer what was accepted once asked to stop")
    ready_file: Path | None = Field(None, description="write the ports to this file as JSON once requests are served")

    @field_validator("model", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        """Of the environment and the flag alike."""
        values = [value] if isinstance(value, str | Path) else value
        if not isinstance(values, list | tuple):
            return value
        return [part for entry in values for part in (entry.split(",") if isinstance(entry, str) else [entry]) if part]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        faults = []
        if (self.tls_cert is None) != (self.tls_key is None):
            faults.append("--tls-cert and --tls-key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            faults.append("--tls-client-ca needs --tls-cert")
        if (self.worker_tls_cert is None) != (self.worker_tls_key is None):
            faults.append("--worker-tls-cert and --worker-tls-key go together")
        if self.worker_tls_cert is not None and self.worker_tls_ca is None:
            faults.append("--worker-tls-cert needs --worker-tls-ca")
        if self.worker_tls_ca is not None and self.worker_address is None:
            faults.append("--worker-tls-ca needs --worker-address")
        if fault := exposure_fault("--host", self.host, self.tls_cert is not None, self.allow_insecure):
            faults.append(fault)
        if self.worker_address is not None and not self.worker:
            faults.append("--worker-address and --no-worker exclude each other")
        if self.client_burst is not None and self.client_rate is None:
            faults.append("--client-burst needs --client-rate")
        if self.port == self.metrics_port != 0:
            faults.append("--port and --metrics-port must differ")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """None for an unencrypted port."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)
