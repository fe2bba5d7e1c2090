"""Computes the traffic of one or several replicas between two scrapes of their metrics. `replicas` calls it.

docs/metrics.md explains the metrics.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zfserve_protos.methods import is_probe

from zfserve_cli.top.metrics_text import Samples, Series, quantile

STEPS = {
    "decode": "decode",
    "queue": "queue",
    "engine": "inference",
    "projection": "projection",
    "explanation": "explanation",
}
"""Lists the steps of a request. The value is the name in the step's metric, `zfserve_<name>_seconds`."""


@dataclass(frozen=True)
class Percentiles:
    """Holds percentiles of a duration, in seconds. They are None if nothing happened.

    Attributes:
        p50: the median.
        p95: the 95th percentile.
        p99: the 99th percentile.
    """

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class MethodTraffic:
    """Describes the calls of one method.

    Attributes:
        method: the gRPC method, without the leading slash.
        per_s: the calls that ended, per second.
        failed_per_s: the calls that ended with another status than OK, per second.
        latency: the duration of the calls.
        in_flight: the calls in flight at the second scrape.
    """

    method: str
    per_s: float
    failed_per_s: float
    latency: Percentiles
    in_flight: float


@dataclass(frozen=True)
class Traffic:
    """Describes the traffic between two scrapes, without health checks and reflection.

    Attributes:
        seconds: the time between the two scrapes. It is 0 for a single scrape, and then every rate is 0.
        per_s: the calls that ended, per second, by the name of their gRPC status.
        latency: the duration of all calls.
        methods: the calls of each method.
        steps: the duration of each step, by the names in `STEPS`.
        images_per_s: the images that the engines ran, per second.
        batch_size: the mean size of the batches. None if there were none.
        batch_fill: the mean share of the largest batch size that the batches used, in [0, 1]. None if there were none.
        projections_per_s: the projections that the worker computed, per second.
        queue_depth: the images in the queues at the second scrape.
        in_flight: the calls in flight at the second scrape.
        worker: the state of the connection to the worker. "" if there is none.
        phase: the phase of the start. "" if the process has none, such as a worker.
        models: "NAME VERSION" of each model that is served.
    """

    seconds: float
    per_s: Mapping[str, float]
    latency: Percentiles
    methods: tuple[MethodTraffic, ...]
    steps: Mapping[str, Percentiles]
    images_per_s: float
    batch_size: float | None
    batch_fill: float | None
    projections_per_s: float
    queue_depth: float
    in_flight: float
    worker: str
    phase: str
    models: tuple[str, ...]

    @property
    def calls_per_s(self) -> float:
        return sum(self.per_s.values())


def summarise(counted: Samples, shown: Samples, seconds: float) -> Traffic:
    """Returns the traffic of one process, or of several processes whose samples were added up.

    Args:
        counted: what counters and histograms counted in `seconds`, as `metrics_text.difference` returns it.
        shown: the samples at the end of that time, with the gauges.
        seconds: the time between the two scrapes.
    """

    def per_second(count: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    def count(name: str) -> float:
        return _total(counted, name, lambda series: True)

    statuses: dict[str, float] = {}
    for series, calls in counted.items():
        if series.name == "zfserve_requests_total" and calls and _is_traffic(series):
            status = series.label("status")
            statuses[status] = statuses.get(status, 0.0) + per_second(calls)
    return Traffic(
        seconds=seconds,
        per_s=dict(sorted(statuses.items(), key=lambda item: (item[0] != "OK", item[0]))),
        latency=_percentiles(counted, "zfserve_request_seconds", _is_traffic),
        methods=tuple(_method_traffic(method, counted, shown, per_second) for method in _methods(counted, shown)),
        steps={step: _percentiles(counted, f"zfserve_{name}_seconds", lambda _: True) for step, name in STEPS.items()},
        images_per_s=per_second(count("zfserve_batch_size_sum")),
        batch_size=_mean(counted, "zfserve_batch_size"),
        batch_fill=_mean(counted, "zfserve_batch_fill_ratio"),
        projections_per_s=per_second(count("zfserve_projection_seconds_count")),
        queue_depth=_total(shown, "zfserve_queue_depth", lambda series: True),
        in_flight=_total(shown, "zfserve_in_flight", _is_traffic),
        worker=_state(shown, "zfserve_worker_pairing", "state"),
        phase=_state(shown, "zfserve_startup_phase", "phase"),
        models=_models(shown),
    )


def count_calls(counted: Samples) -> float:
    """Returns the number of calls that ended."""
    return _total(counted, "zfserve_requests_total", _is_traffic)


def _method_traffic(
    method: str, counted: Samples, shown: Samples, per_second: Callable[[float], float]
) -> MethodTraffic:
    def is_method(series: Series) -> bool:
        return series.label("method") == method

    def failed(series: Series) -> bool:
        return is_method(series) and series.label("status") != "OK"

    return MethodTraffic(
        method.removeprefix("/"),
        per_second(_total(counted, "zfserve_requests_total", is_method)),
        per_second(_total(counted, "zfserve_requests_total", failed)),
        _percentiles(counted, "zfserve_request_seconds", is_method),
        _total(shown, "zfserve_in_flight", is_method),
    )


def _methods(counted: Samples, shown: Samples) -> list[str]:
    """Returns the methods with calls that ended or are in flight."""
    busy = {
        series.label("method")
        for samples, name in ((counted, "zfserve_requests_total"), (shown, "zfserve_in_flight"))
        for series, value in samples.items()
        if series.name == name and value > 0 and _is_traffic(series)
    }
    return sorted(busy)


def _percentiles(counted: Samples, name: str, wanted: Callable[[Series], bool]) -> Percentiles:
    buckets: dict[float, float] = {}
    for series, value in counted.items():
        if series.name == f"{name}_bucket" and wanted(series):
            bound = float(series.label("le"))
            buckets[bound] = buckets.get(bound, 0.0) + value
    return Percentiles(*(quantile(buckets, share) for share in (0.5, 0.95, 0.99)))


def _total(samples: Samples, name: str, wanted: Callable[[Series], bool]) -> float:
    return sum(value for series, value in samples.items() if series.name == name and wanted(series))


def _mean(counted: Samples, name: str) -> float | None:
    total, runs = (_total(counted, f"{name}_{part}", lambda series: True) for part in ("sum", "count"))
    return total / runs if runs else None


def _state(shown: Samples, name: str, label: str) -> str:
    """Returns the value of `label` for which the metric is 1. Several processes may have several such values."""
    return ", ".join(sorted({s.label(label) for s, value in shown.items() if s.name == name and value > 0}))


def _models(shown: Samples) -> tuple[str, ...]:
    held = {
        f"{series.label('model')} {series.label('version')}"
        for series, value in shown.items()
        if series.name == "zfserve_model_info" and value > 0
    }
    return tuple(sorted(held))


def _is_traffic(series: Series) -> bool:
    return not is_probe(series.label("method"))
