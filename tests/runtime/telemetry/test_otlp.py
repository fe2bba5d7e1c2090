"""Tests the settings that switch traces on. The tests of the server and of the worker check the traces themselves."""

import builtins
from typing import Any

import pytest
from zfserve_runtime.telemetry.otlp import TracingError, endpoint_in, open_tracing

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        (ENDPOINT, "http://collector:4317"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:4317"}, "http://traces:4317"),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, None),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, None),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://collector:4317"),
    ],
)
def test_opentelemetrys_own_variables_name_the_endpoint(environment: dict[str, str], endpoint: str | None) -> None:
    assert endpoint_in(environment) == endpoint


def test_a_protocol_other_than_grpc_is_an_error() -> None:
    with pytest.raises(TracingError, match=r"http/protobuf.*grpc only"):
        endpoint_in(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})


@pytest.mark.parametrize("endpoint", ["collector:4317", "unix:/run/collector", "ftp://x"])
def test_an_endpoint_without_a_scheme_is_an_error(endpoint: str) -> None:
    with pytest.raises(TracingError, match="not of the form"), open_tracing("zfserve-server", endpoint, None):
        pass


def test_an_unusable_variable_is_a_tracing_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with (
        pytest.raises(TracingError, match=r"cannot be set up.*soon"),
        open_tracing("zfserve-server", "http://localhost:4317", None),
    ):
        pass


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError("No module named 'opentelemetry.sdk'", name="opentelemetry.sdk")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with (
        pytest.raises(TracingError, match=r"-e '\.\[tracing\]'$"),
        open_tracing("zfserve-server", "http://localhost:4317", None),
    ):
        pass
