"""The server's settings, validated as a whole. Read from flags and environment by `serve_command`, used by `app`."""

from pathlib import Path
from typing import Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from zfserve_runtime.engine_catalogue import EngineName, OnRefusal
from zfserve_runtime.images import ImageLimits
from zfserve_runtime.logs import LogFormat

from zfserve_server.engine_choice import WantedEngine, WantedPrecision


class ServerConfig(BaseModel):
    """Every setting of `zfserve serve`; the descriptions are the command's help.

    Raises:
        ValidationError: names every fault at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(Path("models/zfnet"), description="folder of a bundle, or of its versions (newest is served)")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8500, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9500, ge=0, le=65535, description="Prometheus HTTP port; 0 takes a free one")
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
        description="fp32, fp16, int8, or auto: int8 on a CPU and fp16 on a GPU where the bundle shows that it costs "
        "at most a point of accuracy, else fp32",
    )
    threads: int | None = Field(None, ge=1, description="of the engine; by default the CPUs this container may use")
    max_batch_size: int = Field(16, ge=1, le=1024, description="most images in one run of the engine")
    max_queue: int = Field(256, ge=1, description="most requests accepted and not answered; more are refused at once")
    max_image_bytes: int = Field(ImageLimits.max_bytes, ge=1024, description="largest image accepted, in bytes")
    max_image_pixels: int = Field(ImageLimits.max_pixels, ge=1, description="largest image accepted, in pixels")
    worker: bool = Field(True, description="answer projections; without --worker-address by a worker started here")
    worker_address: str | None = Field(None, description="of a worker started elsewhere: HOST:PORT or unix:PATH")
    reference_ttl: float = Field(600.0, gt=0, description="seconds that an unused image reference stays valid")
    tls_cert: Path | None = Field(None, description="PEM certificate chain; turns TLS on")
    tls_key: Path | None = Field(None, description="PEM private key of --tls-cert")
    tls_client_ca: Path | None = Field(None, description="PEM authority; only clients with its certificates may call")
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
    drain_grace: float = Field(30.0, ge=0, description="seconds to answer what was accepted once asked to stop")
    ready_file: Path | None = Field(None, description="write the ports to this file as JSON once requests are served")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        faults = []
        if (self.tls_cert is None) != (self.tls_key is None):
            faults.append("--tls-cert and --tls-key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            faults.append("--tls-client-ca needs --tls-cert")
        if self.worker_address is not None and not self.worker:
            faults.append("--worker-address and --no-worker exclude each other")
        if self.port == self.metrics_port != 0:
            faults.append("--port and --metrics-port must differ")
        if faults:
            raise ValueError("; ".join(faults))
        return self
