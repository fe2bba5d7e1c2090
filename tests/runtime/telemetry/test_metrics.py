import socket
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest
from prometheus_client.parser import text_string_to_metric_families
from zfserve_runtime.telemetry import metrics_endpoint
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.metrics_endpoint import MetricsEndpoint


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=10) as answer:
        text: bytes = answer.read()
    return text.decode()


def test_all_metrics_are_served() -> None:
    metrics = Metrics()
    metrics.requests.labels("/zfserve.v1.VisionService/Classify", "OK").inc()
    model = metrics.of_model("zfnet", "1")
    model.batch_size.observe(3)
    model.queue_depth.set(5)
    metrics.decode_seconds.observe(0.003)
    metrics.model_info.labels("zfnet", "1", "abcd").set(1)
    with MetricsEndpoint(metrics, port=0, address="localhost") as endpoint:
        families = {family.name: family for family in text_string_to_metric_families(scrape(endpoint.port))}

    # The metrics of the process and of the interpreter are there too.
    assert {"zfserve_in_flight", "process_resident_memory_bytes", "python_info"} <= families.keys()
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["zfserve_requests_total", "/zfserve.v1.VisionService/Classify", "OK"] == 1
    assert samples["zfserve_batch_size_bucket", "1", "2.0", "zfnet"] == 0
    assert samples["zfserve_batch_size_bucket", "1", "4.0", "zfnet"] == 1
    assert samples["zfserve_queue_depth", "1", "zfnet"] == 5
    assert samples["zfserve_decode_seconds_bucket", "0.002"] == 0
    assert samples["zfserve_decode_seconds_bucket", "0.004"] == 1
    assert samples["zfserve_model_info", "1", "abcd", "zfnet"] == 1


def test_the_series_of_a_retired_version_end() -> None:
    metrics = Metrics()
    for version in ("1", "2"):
        model = metrics.of_model("zfnet", version)
        model.batch_size.observe(3)
        model.queue_depth.set(5)
        metrics.model_info.labels("zfnet", version, "abcd").set(1)
    metrics.forget_model("zfnet", "1")
    versions = {
        sample.labels["version"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if "model" in sample.labels
    }
    assert versions == {"2"}


def test_two_metrics_objects_do_not_share_a_registry() -> None:
    first, second = Metrics(), Metrics()
    first.worker_restarts.inc()
    assert second.registry.get_sample_value("zfserve_worker_restarts_total") == 0


def test_a_closed_endpoint_frees_its_port_and_a_port_in_use_is_an_error() -> None:
    with MetricsEndpoint(Metrics(), port=0, address="localhost") as endpoint:
        with pytest.raises(OSError, match=f"cannot listen on localhost:{endpoint.port}; is it in use.*--metrics-port"):
            MetricsEndpoint(Metrics(), port=endpoint.port, address="localhost")
        assert "zfserve_" in scrape(endpoint.port)
    with pytest.raises(urllib.error.URLError):
        scrape(endpoint.port)


def test_silent_connections_are_limited_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_endpoint._Handler, "timeout", 0.2)
    with MetricsEndpoint(Metrics(), port=0, address="localhost") as endpoint, ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("localhost", endpoint.port), timeout=30))
            for _ in range(metrics_endpoint.MAX_SCRAPES + 1)
        ]
        for each in silent:
            assert each.recv(1) == b"", "the server closes the last at once, and the others after a while"
        assert "zfserve_" in scrape(endpoint.port)
