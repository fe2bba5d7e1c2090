"""Parses the metrics of a process, and computes with them. `zfserve top` and the benchmarks use it.

The format is Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats). This module
has its own parser of thirty lines, so that the base install does not need prometheus_client.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

Labels: TypeAlias = frozenset[tuple[str, str]]


class Series(NamedTuple):
    """Identifies a sample by its name and labels, such as `zfserve_requests_total{status="OK"}`."""

    name: str
    labels: Labels

    def label(self, key: str) -> str:
        """Returns the value of a label, or "" if the series has no such label."""
        return dict(self.labels).get(key, "")


Samples: TypeAlias = Mapping[Series, float]

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')
_ESCAPE = re.compile(r"\\(.)")


class NotMetrics(ValueError):
    """The text is not in the format of /metrics. The message has the line."""


def parse_metrics(text: str) -> dict[Series, float]:
    """Returns the samples of a page.

    Raises:
        NotMetrics: a line is malformed.
    """
    samples = {}
    for line in text.split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line)
        if match is None:
            raise NotMetrics(f"not a metric: {line[:60]!r}")
        name, labels, value = match.groups()
        try:
            samples[Series(name, _parse_labels(labels or ""))] = float(value)
        except ValueError as error:
            raise NotMetrics(f"not a metric: {line[:60]!r}") from error
    return samples


def difference(before: Samples, after: Samples) -> dict[Series, float]:
    """Returns what counters and histograms counted between two scrapes of one process, without the gauges.

    If a counter is smaller than before, its process was restarted. Then its whole value counts.
    """
    counted = {}
    for series, value in after.items():
        if series.name.endswith(("_total", "_count", "_sum", "_bucket")):
            earlier = before.get(series, 0.0)
            counted[series] = value - earlier if value >= earlier else value
    return counted


def merged(parts: Iterable[Samples]) -> dict[Series, float]:
    """Returns the sums over several processes. All histograms have the same bounds, so buckets can be summed."""
    sums: dict[Series, float] = {}
    for part in parts:
        for series, value in part.items():
            sums[series] = sums.get(series, 0.0) + value
    return sums


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Estimates the value below which `share` of the observations lie, as Prometheus' `histogram_quantile` does.

    It assumes that observations are evenly spread within a bucket. If the value lies above the last finite bound, the
    result is that bound.

    Args:
        buckets: the number of observations at or below each bound. Infinity and a finite bound are among the bounds.
        share: the quantile, in (0, 1).

    Returns:
        The value, or None if there are no observations.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank = share * total
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            inside = buckets[bound] - below
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / inside
        lower, below = bound, buckets[bound]
    raise AssertionError("the last bucket holds all observations")


def _parse_labels(text: str) -> Labels:
    labels, position = [], 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            raise ValueError
        key, value = match.groups()
        labels.append((key, _ESCAPE.sub(lambda escaped: "\n" if escaped[1] == "n" else escaped[1], value)))
        position = match.end()
    return frozenset(labels)
