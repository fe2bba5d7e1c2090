"""Declares the settings of `zfserve worker`. `worker_process` reads them, `app` uses them."""

from typing import ClassVar, Literal

from pydantic import Field
from zfserve_runtime.settings import Port, ProcessSettings


class WorkerConfig(ProcessSettings):
    """Holds every setting of `zfserve worker`. The descriptions are the command's help.

    A worker that the server starts inherits the server's environment, and the server has variables such as
    `ZFSERVE_WORKER_DEVICE`. So the worker's variables have a prefix of their own.

    Raises:
        ValidationError: names every fault at once.
    """

    environment_prefix = "ZFWORKER_"
    address_field = "listen"
    sections: ClassVar = {
        "Models": ("model", "spare_networks"),
        "Listening": ("listen", "allow_insecure", "metrics_host", "metrics_port"),
        "Callers": ("tls_cert", "tls_key", "tls_client_ca"),
        "Projections": ("threads", "device", "queue", "cache"),
        "Logs and traces": ("log_format", "log_level", "otlp_endpoint"),
        "Start and stop": ("exit_with_parent", "drain_delay", "drain_grace"),
    }

    spare_networks: int = Field(
        1,
        ge=0,
        description="Number of spare networks kept in memory, because other servers may still ask for the previous "
        "version. They come on top of the networks that a server has announced, or, before any announcement, on top "
        "of one network of each model.",
    )
    listen: str = Field(
        "localhost:8501", description="Address to listen on: `HOST:PORT` or `unix:PATH`. Port 0 takes a free port."
    )
    metrics_port: Port | None = Field(
        None,
        description="Port of the Prometheus HTTP endpoint; 0 takes a free port. If unset, there is no endpoint.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of one PyTorch operation. If unset, as many as the CPUs that this process or its "
        "container may use.",
    )
    device: str = Field(
        "cpu",
        description="Device that computes: `cpu`, `cuda`, `cuda:1` and so on, or `auto`, which takes a GPU if there is "
        "one.",
    )
    queue: int = Field(16, ge=1, description="Largest number of calls in flight. Further calls are refused at once.")
    cache: int = Field(
        8,
        ge=1,
        description="Largest number of forward passes kept for each network. Further projections of such a photo need "
        "no second forward pass. They take at most a sixteenth of the memory that the process may use.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged: `debug`, `info`, `warning` or `error`."
    )
    exit_with_parent: bool = Field(
        False, description="Stop when standard input, a pipe from the parent process, is closed."
    )
