"""Prometheus metrics of one process, on a registry of their own; `metrics_endpoint` shows them."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from zfserve_runtime.telemetry.model_statistics import ModelStatistics

# From a decode in half a millisecond to a client that waits ten seconds, each bound about twice the one before.
_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
_OF_MODEL = ("model", "version")


class Metrics:
    """Everything measured, as attributes named like the metrics. Server and worker each fill in their part.

    What tells of one version of a model has the labels `model` and `version`: `of_model` binds them.

    Attributes:
        requests, request_seconds, in_flight: kept by the interceptor; `status` is the gRPC code's name.
        refusals: calls answered by an error of ours, by its reason; kept by the interceptor.
        decode_seconds: decoding and resizing one image.
        queue_seconds: from admission until the work began.
        inference_seconds: one run of the engine, whatever its batch size.
        projection_seconds: one feature map projected and rendered.
        batch_fill: images in one run of the engine as a share of the most that it takes.
        queue_depth: accepted, not yet begun.
        queue_expired: dropped from the queue, as their callers' deadlines had passed.
        engine_failures: runs of the engine that failed.
        worker_pairing: 1 for the state that the server and its worker are in, 0 for the others.
        model_info: always 1; the labels say what is served.
        model_loads: versions that were found and loaded, or refused; `result` is `ready` or `refused`.
        model_refused: 1 for every version that lies in a model's folder and was refused.
        startup_phase: 1 for the phase that the start is in, 0 for the others.
        startup_seconds: spent in each phase that is over.
        startup_progress: share of that phase that is done, in [0, 1], where it is one that tells.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        # Memory, CPU time, open files and start of this process; the interpreter; its garbage collector.
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

        def seconds(name: str, meaning: str, *labels: str) -> Histogram:
            return Histogram(f"zfserve_{name}_seconds", meaning, labels, buckets=_SECONDS, registry=registry)

        self.requests = Counter("zfserve_requests", "Calls ended.", ["method", "status"], registry=registry)
        self.refusals = Counter(
            "zfserve_refusals", "Calls answered by an error.", ["method", "reason"], registry=registry
        )
        self.request_seconds = seconds("request", "From arrival to the end of a call.", "method")
        self.in_flight = Gauge("zfserve_in_flight", "Calls being served.", ["method"], registry=registry)
        self.decode_seconds = seconds("decode", "Decoding and resizing one image.")
        self.queue_seconds = seconds("queue", "From admission until the work began.", *_OF_MODEL)
        self.inference_seconds = seconds("inference", "One run of the engine.", *_OF_MODEL)
        self.projection_seconds = seconds("projection", "Projecting and rendering one feature map.", *_OF_MODEL)
        self.batch_size = Histogram(
            "zfserve_batch_size", "Images in one run of the engine.", _OF_MODEL, buckets=_BATCH_SIZES, registry=registry
        )
        self.batch_fill = Histogram(
            "zfserve_batch_fill_ratio",
            "Images in one run of the engine, as a share of the most it takes.",
            _OF_MODEL,
            buckets=_SHARES,
            registry=registry,
        )
        self.engine_failures = Counter(
            "zfserve_engine_failures", "Runs of the engine that failed.", _OF_MODEL, registry=registry
        )
        self.queue_expired = Counter(
            "zfserve_queue_expired", "Dropped from the queue after their deadline.", _OF_MODEL, registry=registry
        )
        self.queue_depth = Gauge("zfserve_queue_depth", "Accepted and not yet begun.", _OF_MODEL, registry=registry)
        self.worker_pairing = Gauge(
            "zfserve_worker_pairing", "Whether server and worker are in this state.", ["state"], registry=registry
        )
        self.worker_restarts = Counter(
            "zfserve_worker_restarts", "Times a dead worker was restarted.", registry=registry
        )
        self.model_info = Gauge("zfserve_model_info", "What is served.", [*_OF_MODEL, "fingerprint"], registry=registry)
        self.model_loads = Counter(
            "zfserve_model_loads", "Versions found and loaded, or refused.", ["model", "result"], registry=registry
        )
        self.model_refused = Gauge(
            "zfserve_model_refused", "Versions that were found and refused.", _OF_MODEL, registry=registry
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

    def of_model(self, name: str, version: str) -> "ModelMetrics":
        """Those that tell of one version, to be filled in without looking its labels up each time."""
        return ModelMetrics(self, name, version)

    def forget_model(self, name: str, version: str) -> None:
        """A version that is served no more; its series end."""
        for metric in (
            self.queue_depth,
            self.queue_seconds,
            self.queue_expired,
            self.batch_size,
            self.batch_fill,
            self.inference_seconds,
            self.engine_failures,
            self.projection_seconds,
            self.model_info,
        ):
            metric.remove_by_labels({"model": name, "version": version})


class ModelMetrics:
    """Metrics of one version of a model; the attributes are those of `Metrics` with the labels bound.

    Attributes:
        statistics: exact where histograms are not; no part of `/metrics`.
    """

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self.statistics = ModelStatistics()
        self.queue_depth = metrics.queue_depth.labels(name, version)
        self.queue_seconds = metrics.queue_seconds.labels(name, version)
        self.queue_expired = metrics.queue_expired.labels(name, version)
        self.batch_size = metrics.batch_size.labels(name, version)
        self.batch_fill = metrics.batch_fill.labels(name, version)
        self.inference_seconds = metrics.inference_seconds.labels(name, version)
        self.engine_failures = metrics.engine_failures.labels(name, version)
        self.projection_seconds = metrics.projection_seconds.labels(name, version)
