"""Tests the parser of metrics and the figures that are computed from them."""

import math

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from zfserve_cli.top.metrics_text import NotMetrics, Series, difference, merged, parse_metrics, quantile
from zfserve_runtime.telemetry.metrics import Metrics


def series(name: str, **labels: str) -> Series:
    return Series(name, frozenset(labels.items()))


def test_the_parser_agrees_with_that_of_prometheus() -> None:
    metrics = Metrics()
    metrics.requests.labels("/a.B/C", "OK").inc(3)
    metrics.decode_seconds.observe(0.003)
    metrics.model_info.labels('a "name", with } and\\', "new\nline", "ab").set(1)
    text = generate_latest(metrics.registry).decode()
    expected = {
        Series(sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert parse_metrics(text) == expected
    assert len(expected) > 30


@pytest.mark.parametrize("text", ["<html>", "a{b=c} 1", "a{b='c'} 1", "a one", "a{", "1a 1"])
def test_a_malformed_line_is_refused(text: str) -> None:
    with pytest.raises(NotMetrics):
        parse_metrics(f"fine 1\n{text}\n")


def test_timestamps_exponents_and_infinities() -> None:
    assert parse_metrics('a 1e3 1700000000\nb{le="+Inf"} +Inf\n') == {
        series("a"): 1000.0,
        series("b", le="+Inf"): math.inf,
    }


def test_a_counter_that_started_again_counts_from_0() -> None:
    before = {series("x_total"): 10.0, series("y_bucket"): 4.0, series("gauge"): 3.0}
    after = {series("x_total"): 12.0, series("y_bucket"): 1.0, series("gauge"): 9.0, series("new_total"): 5.0}
    assert difference(before, after) == {series("x_total"): 2.0, series("y_bucket"): 1.0, series("new_total"): 5.0}


def test_merging_adds_series_by_series() -> None:
    first, second = {series("x", a="1"): 1.0}, {series("x", a="1"): 2.0, series("x", a="2"): 4.0}
    assert merged([first, second]) == {series("x", a="1"): 3.0, series("x", a="2"): 4.0}


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({1.0: 0, 2.0: 10, math.inf: 10}, 0.5, 1.5),  # the fifth of ten, spread evenly over 1 to 2
        ({1.0: 10, 2.0: 10, math.inf: 10}, 0.99, 0.99),
        ({1.0: 5, 2.0: 10, math.inf: 10}, 0.5, 1.0),
        ({1.0: 5, 2.0: 5, 4.0: 10, math.inf: 10}, 0.75, 3.0),
        ({1.0: 0, 2.0: 5, math.inf: 10}, 0.9, 2.0),  # beyond the last finite bound
        ({1.0: 0, math.inf: 0}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_quantiles_by_hand(buckets: dict[float, float], share: float, expected: float | None) -> None:
    found = quantile(buckets, share)
    assert found == (None if expected is None else pytest.approx(expected))
