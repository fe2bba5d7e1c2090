"""Defines the Prometheus metrics of one process. `metrics_endpoint` serves them."""

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

# A decode takes half a millisecond, and a client may wait ten seconds. Each bound is about twice the previous one.
_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
_MODEL_LABELS = ("model", "version")


class Metrics:
    """Holds the metrics. Each attribute has its metric's name. Server and worker update their own part of them.

    Metrics of one version of a model have the labels `model` and `version`. `of_model` binds them.

    Attributes:
        requests, request_seconds, in_flight: the calls. The interceptor counts them; `status` is the gRPC code's name.
        refusals: the calls answered by one of our errors, by its reason. The interceptor counts them.
        decode_seconds: the time to decode and resize one image.
        queue_seconds: the time from admission until the work begins.
        inference_seconds: the time of one run of the engine, whatever its batch size.
        projection_seconds: the time to project and render one feature map.
        explanation_seconds: the time to explain one class, with its overlay, after the forward pass.
        study_images: the images that studies have run: photos that were read, occluded, changed, or run without maps.
        study_seconds: the time of one study, from its admission to its last message.
        batch_size: the number of images in one run of the engine.
        batch_fill: that number as a share of the largest batch, in (0, 1].
        queue_depth: the number of accepted images that wait for the engine, or in a worker for PyTorch.
        queue_expired: the images dropped from the queue because their deadlines had passed.
        engine_failures: the runs of the engine that failed.
        worker_pairing: 1 for the present state of the pairing of server and worker, 0 for the others.
        worker_restarts: the number of times that a dead worker was restarted.
        model_info: always 1. The labels say what is served.
        model_loads: the versions that were found and then loaded or refused. `result` is `ready` or `refused`.
        model_refused: 1 for each version that lies in a model's folder and was refused.
        startup_phase: 1 for the present phase of the start, 0 for the others.
        startup_seconds: the time spent in each phase that is over.
        startup_progress: the share of the present phase that is done, in [0, 1], if that phase reports progress.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        # Collect the process's memory, CPU time, open files and start time; the interpreter; its garbage collector.
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

        def seconds(name: str, meaning: str, *labels: str) -> Histogram:
            return Histogram(f"zfserve_{name}_seconds", meaning, labels, buckets=_SECONDS, registry=registry)

        self.requests = Counter("zfserve_requests", "Calls that have ended.", ["method", "status"], registry=registry)
        self.refusals = Counter(
            "zfserve_refusals",
            "Calls that were answered by one of the service's errors.",
            ["method", "reason"],
            registry=registry,
        )
        self.request_seconds = seconds("request", "Time from the arrival to the end of a call.", "method")
        self.in_flight = Gauge("zfserve_in_flight", "Calls in flight.", ["method"], registry=registry)
        self.decode_seconds = seconds("decode", "Time to decode and resize one image.")
        self.queue_seconds = seconds("queue", "Time from admission until the work began.", *_MODEL_LABELS)
        self.inference_seconds = seconds("inference", "Time of one run of the engine.", *_MODEL_LABELS)
        self.projection_seconds = seconds("projection", "Time to project and render one feature map.", *_MODEL_LABELS)
        self.explanation_seconds = seconds("explanation", "Time to explain one class and draw it.", *_MODEL_LABELS)
        study_labels = (*_MODEL_LABELS, "study")
        self.study_seconds = seconds("study", "Time of one study.", *study_labels)
        self.study_images = Counter(
            "zfserve_study_images", "Images that studies have run.", study_labels, registry=registry
        )
        self.batch_size = Histogram(
            "zfserve_batch_size",
            "Images in one run of the engine.",
            _MODEL_LABELS,
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self.batch_fill = Histogram(
            "zfserve_batch_fill_ratio",
            "Images in one run of the engine, as a share of the largest batch.",
            _MODEL_LABELS,
            buckets=_SHARES,
            registry=registry,
        )
        self.engine_failures = Counter(
            "zfserve_engine_failures", "Runs of the engine that failed.", _MODEL_LABELS, registry=registry
        )
        self.queue_expired = Counter(
            "zfserve_queue_expired",
            "Images dropped from the queue after their deadline.",
            _MODEL_LABELS,
            registry=registry,
        )
        self.queue_depth = Gauge(
            "zfserve_queue_depth", "Accepted images whose run has not begun.", _MODEL_LABELS, registry=registry
        )
        self.worker_pairing = Gauge(
            "zfserve_worker_pairing",
            "1 for the present state of the pairing with the worker, 0 for the others.",
            ["state"],
            registry=registry,
        )
        self.worker_restarts = Counter(
            "zfserve_worker_restarts", "Times a dead worker was restarted.", registry=registry
        )
        self.model_info = Gauge(
            "zfserve_model_info",
            "Always 1. The labels say what is served.",
            [*_MODEL_LABELS, "fingerprint"],
            registry=registry,
        )
        self.model_loads = Counter(
            "zfserve_model_loads", "Versions found and loaded, or refused.", ["model", "result"], registry=registry
        )
        self.model_refused = Gauge(
            "zfserve_model_refused", "Versions that were found and refused.", _MODEL_LABELS, registry=registry
        )
        self.startup_phase = Gauge(
            "zfserve_startup_phase",
            "1 for the present phase of the start, 0 for the others.",
            ["phase"],
            registry=registry,
        )
        self.startup_seconds = Gauge(
            "zfserve_startup_seconds", "Seconds spent in each phase of the start.", ["phase"], registry=registry
        )
        self.startup_progress = Gauge(
            "zfserve_startup_progress",
            "Share of this phase of the start that is done, in [0, 1].",
            ["phase"],
            registry=registry,
        )

    def of_model(self, name: str, version: str) -> "ModelMetrics":
        """Returns the metrics of one version. Their labels are bound, so that no update looks them up."""
        return ModelMetrics(self, name, version)

    def forget_model(self, name: str, version: str) -> None:
        """Ends the series of a version that is no longer served."""
        for metric in (
            self.queue_depth,
            self.queue_seconds,
            self.queue_expired,
            self.batch_size,
            self.batch_fill,
            self.inference_seconds,
            self.engine_failures,
            self.projection_seconds,
            self.explanation_seconds,
            self.study_seconds,
            self.study_images,
            self.model_info,
        ):
            metric.remove_by_labels({"model": name, "version": version})


class ModelMetrics:
    """Holds the metrics of one version of a model: attributes of `Metrics` with the labels bound.

    Attributes:
        statistics: exact counts, which histograms lack. `/metrics` does not show them.
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
        self.explanation_seconds = metrics.explanation_seconds.labels(name, version)
        self._study_seconds = metrics.study_seconds
        self._study_images = metrics.study_images
        self._labels = (name, version)

    def study_seconds(self, study: str) -> Histogram:
        """Returns the time of studies of that name, such as "occlude"."""
        return self._study_seconds.labels(*self._labels, study)

    def study_images(self, study: str) -> Counter:
        """Returns the number of images of studies of that name."""
        return self._study_images.labels(*self._labels, study)
