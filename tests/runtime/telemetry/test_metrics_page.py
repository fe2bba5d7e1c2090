"""docs/metrics.md lists every metric and nothing else."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase
from zfserve_runtime.telemetry.metrics import Metrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(zfserve_\w+)` \| (\w+) \|([^|]*)\|[^|]*\|[^|]+\|$", re.MULTILINE)


def test_the_page_has_every_metric_with_its_type_and_labels() -> None:
    metrics = Metrics()
    shown = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type, metric._labelnames)
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
        for family in metric.describe()
    }
    rows = ROW.findall(PAGE.read_text())
    documented = {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == shown, "add the metric to the table in docs/metrics.md, or take it out"
    assert len(rows) == len(documented)


def test_the_page_has_what_prometheus_client_adds() -> None:
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    added = {sample.name for family in registry.collect() for sample in family.samples}
    assert set(re.findall(r"`((?:process|python)_\w+)`", PAGE.read_text())) == added


def test_the_bounds_on_the_page_are_those_of_the_code() -> None:
    metrics = Metrics()
    page = PAGE.read_text()
    told = re.search(r"^\| seconds \| ([\d., ms]*) s\. ", page, re.MULTILINE)
    assert told is not None
    milliseconds, seconds = told[1].split(" ms, ")
    bounds = [float(bound) / 1e3 for bound in milliseconds.split(", ")] + [float(b) for b in seconds.split(", ")]
    sample = metrics.decode_seconds.collect()
    assert [float(s.labels["le"]) for f in sample for s in f.samples if s.name.endswith("_bucket")] == [
        *bounds,
        float("inf"),
    ]
