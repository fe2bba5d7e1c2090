"""Generates deploy/observability/dashboard.json for Grafana. With --check, fails if the committed file is out of date.

`ROWS` describes the panels, and the rest adds what Grafana needs. docs/metrics.md explains the metrics.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

OUTPUT = Path(__file__).parent.parent / "deploy" / "observability" / "dashboard.json"

HERE = 'job=~"$job",instance=~"$instance"'
MODEL = f'{HERE},model=~"$model"'
WORK = f'{HERE},method!~"/grpc.*"'
CLASSIFY = f'{HERE},method=~".*/(Classify|ModelInfer)"'
PROJECT = f'{HERE},method="/zfserve.v1.VisionService/Project"'
EXPLAIN = f'{HERE},method="/zfserve.v1.VisionService/Explain"'
STUDY = f'{HERE},method=~".*/(Activations|Occlude|Ablate|Transform)"'

WIDTH, HEIGHT, COLUMNS = 8, 8, 3
"""The size of a panel in Grafana's units, of which a screen has 24 across, and the number of panels in a row."""


class Query(NamedTuple):
    """Holds a PromQL expression and the legend of its lines."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """Describes a panel by its title, Grafana's name of its unit, up to three queries, and an explanation."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    meaning: str


def rate(metric: str, selector: str, *by: str) -> str:
    """Returns the rate of a counter, summed by labels."""
    return f"sum by ({', '.join(by)}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def mean(histogram: str, selector: str, *by: str) -> str:
    """Returns the mean of a histogram by labels."""
    return f"{rate(histogram + '_sum', selector, *by)} / {rate(histogram + '_count', selector, *by)}"


def quantiles(histogram: str, selector: str) -> tuple[Query, ...]:
    """Returns queries for three quantiles over all replicas. The query adds the replicas' buckets first."""
    buckets = rate(f"{histogram}_bucket", selector, "le")
    return tuple(Query(f"histogram_quantile({share}, {buckets})", f"p{share * 100:.0f}") for share in (0.5, 0.95, 0.99))


def p95_by(histogram: str, selector: str, label: str) -> Query:
    """Returns a query for the 95th percentile by a label."""
    return Query(f"histogram_quantile(0.95, {rate(f'{histogram}_bucket', selector, 'le', label)})", f"{{{{{label}}}}}")


ROWS: dict[str, tuple[Panel, ...]] = {
    "Calls": (
        Panel("Calls by status", "reqps", (Query(rate("zfserve_requests_total", WORK, "status"), "{{status}}"),),
              "Without health probes."),
        Panel("Classification: latency", "s", quantiles("zfserve_request_seconds", CLASSIFY),
              "From arrival to answer, over all replicas."),
        Panel("Refusals by reason", "reqps", (Query(rate("zfserve_refusals_total", WORK, "reason"), "{{reason}}"),),
              "OVERLOADED: add replicas. INVALID_INPUT and similar reasons are faults of callers."),
        Panel("Share of calls that failed in the service", "percentunit",
              (Query(f"sum(rate(zfserve_requests_total{{{WORK},status=~\"INTERNAL|UNKNOWN|DATA_LOSS\"}}[$__rate_interval]))"
                     f" / sum(rate(zfserve_requests_total{{{WORK}}}[$__rate_interval]))", "failed"),),
              "INTERNAL, UNKNOWN and DATA_LOSS over all calls."),
        Panel("In flight", "short", (Query(f"sum by (instance) (zfserve_in_flight{{{WORK}}})", "{{instance}}"),),
              "Calls in flight, by replica."),
        Panel("Latency by replica: p95", "s", (p95_by("zfserve_request_seconds", CLASSIFY, "instance"),),
              "A replica that stands out may have a noisy neighbour or another engine."),
    ),
    "Queue, batch and engine": (
        Panel("Decode", "s", quantiles("zfserve_decode_seconds", HERE), "Decoding and resizing one image."),
        Panel("Queue", "s", quantiles("zfserve_queue_seconds", MODEL), "From admission to the start of the engine."),
        Panel("Engine", "s", quantiles("zfserve_inference_seconds", MODEL), "One run of any batch size."),
        Panel("Queue depth", "short", (Query(f"sum by (instance) (zfserve_queue_depth{{{MODEL}}})", "{{instance}}"),),
              "The autoscaler scales on it."),
        Panel("Batch size", "short", (
            Query(mean("zfserve_batch_size", MODEL, "model"), "{{model}}: images"),
            Query(mean("zfserve_batch_fill_ratio", MODEL, "model"), "{{model}}: share of the largest")),
            "Means. Full batches show that the engine is the bottleneck."),
        Panel("Expired and failed work", "short", (
            Query(rate("zfserve_queue_expired_total", MODEL, "model"), "{{model}}: expired in the queue"),
            Query(rate("zfserve_engine_failures_total", MODEL, "model"), "{{model}}: engine failed")),
            "Per second. Both should be 0."),
    ),
    "Projections, explanations and the worker": (
        Panel("Projection calls: latency", "s", quantiles("zfserve_request_seconds", PROJECT),
              "From arrival to the last feature map."),
        Panel("Projection of one feature map", "s", quantiles("zfserve_projection_seconds", MODEL), "In the worker."),
        Panel("Worker", "short", (
            Query(f"sum by (state) (zfserve_worker_pairing{{{HERE}}})", "{{state}}"),
            Query(f"sum(increase(zfserve_worker_restarts_total{{{HERE}}}[$__rate_interval]))", "restarts")),
            "Replicas in each pairing state. Only `ready` replicas can project and explain."),
        Panel("Explanation calls: latency", "s", quantiles("zfserve_request_seconds", EXPLAIN),
              "From arrival to answer, with the engine's own classification."),
        Panel("Explanation of one class", "s", quantiles("zfserve_explanation_seconds", MODEL), "In the worker."),
    ),
    "Studies": (
        Panel("Images of studies", "short", (Query(rate("zfserve_study_images_total", MODEL, "study"), "{{study}}"),),
              "Per second. They are bulk work."),
        Panel("Studies: p95", "s", (p95_by("zfserve_study_seconds", MODEL, "study"),),
              "From admission to the last message. A study of many images takes long."),
        Panel("Studies in flight", "short",
              (Query(f"sum by (method) (zfserve_in_flight{{{STUDY}}})", "{{method}}"),), "At most 8 in each replica."),
    ),
    "Models and start": (
        Panel("Versions served", "short",
              (Query(f"count by (model, version) (zfserve_model_info{{{MODEL}}})", "{{model}} {{version}}"),),
              "Replicas that serve each version. Two lines that stay show a roll-out that is stuck."),
        Panel("Refused versions", "short",
              (Query(f"sum by (model, version) (zfserve_model_refused{{{MODEL}}})", "{{model}} {{version}}"),),
              "The log has the reason."),
        Panel("Start", "short",
              (Query(f"sum by (phase) (zfserve_startup_phase{{{HERE}}})", "{{phase}}"),), "Replicas in each phase."),
    ),
    "Processes": (
        Panel("Memory", "bytes", (Query(f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}"),), "Resident."),
        Panel("CPU", "short", (Query(rate("process_cpu_seconds_total", HERE, "instance"), "{{instance}}"),), "Cores."),
        Panel("Open files", "percentunit",
              (Query(f"process_open_fds{{{HERE}}} / process_max_fds{{{HERE}}}", "{{instance}}"),), "Share of limit."),
    ),
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Returns the dashboard as Grafana's JSON model."""
    return {
        "uid": "zfserve",
        "title": "zfserve",
        "tags": ["zfserve"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": [_source(), *(_variable(label) for label in ("job", "instance", "model"))]},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {"id": number, "type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}}
        top += 1
        for place, panel in enumerate(panels):
            number += 1
            left, down = place % COLUMNS * WIDTH, place // COLUMNS * HEIGHT
            yield _panel(panel, number) | {"gridPos": {"x": left, "y": top + down, "w": WIDTH, "h": HEIGHT}}
        top += -(-len(panels) // COLUMNS) * HEIGHT


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 10}}, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "list"}},
        "targets": [
            {"refId": name, "datasource": source, "expr": query.expression, "legendFormat": query.legend}
            for name, query in zip("ABC", panel.queries, strict=False)
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(label: str) -> dict[str, Any]:
    narrower = {"job": "", "instance": '{job=~"$job"}', "model": '{job=~"$job"}'}[label]
    return {
        "name": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": f"label_values(zfserve_model_info{narrower}, {label})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def main() -> int:
    text = json.dumps(dashboard(), indent=2) + "\n"
    if sys.argv[1:] != ["--check"]:
        OUTPUT.write_text(text)
        return 0
    if OUTPUT.read_text() == text:
        return 0
    sys.stderr.write(f"{OUTPUT.name} is out of date; run `python tools/generate_dashboard.py`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
