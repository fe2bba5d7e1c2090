"""What a service does at present: the figures between two looks at its metrics, of one replica or of several. Pure
functions, used by `top`; docs/metrics.md explains the metrics they are made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zfserve_protos.methods import is_probe

from zfserve_cli.top.metrics_text import Samples, Series, quantile

STEPS = {"decode": "decode", "queue": "queue", "engine": "inference", "projection": "projection"}
"""The steps of a request, each with the name in its metric, `zfserve_<name>_seconds`."""


@dataclass(frozen=True)
class Percentiles:
    """In seconds; None where nothing happened."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class MethodTraffic:
    """The calls of one method. `failed_per_s` are those that ended with any status but OK."""

    method: str
    per_s: float
    failed_per_s: float
    latency: Percentiles
    in_flight: float


@dataclass(frozen=True)
class Traffic:
    """Health checks and reflection left out.

    Attributes:
        seconds: between the two looks; 0 for a single one, and then every rate is 0.
        per_s: calls that ended, by the name of their gRPC status.
        latency: of all calls.
        steps: by the names of `STEPS`.
        images_per_s: that engines ran.
        batch_size: mean over the runs; None without any.
        batch_fill: mean share of the largest batch that a run used; None without any.
        queue_depth, in_flight: at the second look.
        worker: state of the pairing with the worker, "" where there is none.
        phase: of the start, "" where the process has none, as a worker.
        models: "NAME VERSION" of each that is served.
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
    """The traffic behind the samples of one process, or behind the sums of several.

    Args:
        counted: by counters and histograms in `seconds`, from `metrics_text.difference`.
        shown: at their end, gauges among them.
    """

    def per_second(count: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    def count(name: str) -> float:
        return _total(counted, name, lambda series: True)

    statuses: dict[str, float] = {}
    for series, calls in counted.items():
        if series.name == "zfserve_requests_total" and calls and _is_work(series):
            status = series.label("status")
            statuses[status] = statuses.get(status, 0.0) + per_second(calls)
    return Traffic(
        seconds=seconds,
        per_s=dict(sorted(statuses.items(), key=lambda item: (item[0] != "OK", item[0]))),
        latency=_percentiles(counted, "zfserve_request_seconds", _is_work),
        methods=tuple(_method_traffic(method, counted, shown, per_second) for method in _methods(counted, shown)),
        steps={step: _percentiles(counted, f"zfserve_{name}_seconds", lambda _: True) for step, name in STEPS.items()},
        images_per_s=per_second(count("zfserve_batch_size_sum")),
        batch_size=_mean(counted, "zfserve_batch_size"),
        batch_fill=_mean(counted, "zfserve_batch_fill_ratio"),
        projections_per_s=per_second(count("zfserve_projection_seconds_count")),
        queue_depth=_total(shown, "zfserve_queue_depth", lambda series: True),
        in_flight=_total(shown, "zfserve_in_flight", _is_work),
        worker=_state(shown, "zfserve_worker_pairing", "state"),
        phase=_state(shown, "zfserve_startup_phase", "phase"),
        models=_models(shown),
    )


def count_calls(counted: Samples) -> float:
    return _total(counted, "zfserve_requests_total", _is_work)


def _method_traffic(
    method: str, counted: Samples, shown: Samples, per_second: Callable[[float], float]
) -> MethodTraffic:
    def is_it(series: Series) -> bool:
        return series.label("method") == method

    def failed(series: Series) -> bool:
        return is_it(series) and series.label("status") != "OK"

    return MethodTraffic(
        method.removeprefix("/"),
        per_second(_total(counted, "zfserve_requests_total", is_it)),
        per_second(_total(counted, "zfserve_requests_total", failed)),
        _percentiles(counted, "zfserve_request_seconds", is_it),
        _total(shown, "zfserve_in_flight", is_it),
    )


def _methods(counted: Samples, shown: Samples) -> list[str]:
    """Those that were called, or are being served."""
    busy = {
        series.label("method")
        for samples, name in ((counted, "zfserve_requests_total"), (shown, "zfserve_in_flight"))
        for series, value in samples.items()
        if series.name == name and value > 0 and _is_work(series)
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
    """Of a metric that is 1 for one value of `label`; of several processes, every value that is 1 in one of them."""
    return ", ".join(sorted({s.label(label) for s, value in shown.items() if s.name == name and value > 0}))


def _models(shown: Samples) -> tuple[str, ...]:
    held = {
        f"{series.label('model')} {series.label('version')}"
        for series, value in shown.items()
        if series.name == "zfserve_model_info" and value > 0
    }
    return tuple(sorted(held))


def _is_work(series: Series) -> bool:
    return not is_probe(series.label("method"))
