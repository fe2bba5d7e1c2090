"""Prometheus metrics of one process, on a registry of their own, and the HTTP endpoint that shows them."""

import threading
from types import TracebackType
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

# From a decode in half a millisecond to a client that waits ten seconds, each bound about twice the one before.
_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Everything measured, as attributes named like the metrics. Server and worker each fill in their part.

    Attributes:
        requests, request_seconds, in_flight: kept by the interceptor; `status` is the gRPC code's name.
        decode_seconds: decoding and resizing one image.
        queue_seconds: from admission until the work began.
        inference_seconds: one run of the engine, whatever its batch size.
        projection_seconds: one feature map projected and rendered.
        queue_depth: accepted, not yet begun.
        model_info: always 1; the labels say what is served.
        startup_phase: 1 for the phase that the start is in, 0 for the others.
        startup_seconds: spent in each phase that is over.
        startup_progress: share of that phase that is done, in [0, 1], where it is one that tells.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def seconds(name: str, meaning: str, *labels: str) -> Histogram:
            return Histogram(f"zfserve_{name}_seconds", meaning, labels, buckets=_SECONDS, registry=registry)

        self.requests = Counter("zfserve_requests", "Calls ended.", ["method", "status"], registry=registry)
        self.request_seconds = seconds("request", "From arrival to the end of a call.", "method")
        self.in_flight = Gauge("zfserve_in_flight", "Calls being served.", ["method"], registry=registry)
        self.decode_seconds = seconds("decode", "Decoding and resizing one image.")
        self.queue_seconds = seconds("queue", "From admission until the work began.")
        self.inference_seconds = seconds("inference", "One run of the engine.")
        self.projection_seconds = seconds("projection", "Projecting and rendering one feature map.")
        self.batch_size = Histogram(
            "zfserve_batch_size", "Images in one run of the engine.", buckets=_BATCH_SIZES, registry=registry
        )
        self.queue_depth = Gauge("zfserve_queue_depth", "Accepted and not yet begun.", registry=registry)
        self.worker_restarts = Counter(
            "zfserve_worker_restarts", "Times a dead worker was restarted.", registry=registry
        )
        self.model_info = Gauge(
            "zfserve_model_info", "What is served.", ["name", "version", "fingerprint"], registry=registry
        )
        self.startup_phase = Gauge(
            "zfserve_startup_phase", "Whether the start is in this phase.", ["phase"], registry=registry
        )
        self.startup_seconds = Gauge(
            "zfserve_startup_seconds", "Spent in each phase of the start.", ["phase"], registry=registry
        )
        self.startup_progress = Gauge(
            "zfserve_startup_progress", "Share of this phase that is done.", ["phase"], registry=registry
        )


class MetricsEndpoint:
    """Serves `metrics` at http://address:port/metrics from a daemon thread until closed.

    Port 0 takes a free one; `port` says which. Raises OSError where the address cannot be bound.
    """

    def __init__(self, metrics: Metrics, port: int, address: str = "0.0.0.0") -> None:
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(port, address, metrics.registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "MetricsEndpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
