"""Tests the settings of `zfserve worker`."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest
from zfserve_runtime.settings import ConfigError
from zfserve_worker.config import WorkerConfig
from zfserve_worker.worker_command import add_arguments


def read(*flags: str, **environment: str) -> WorkerConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    variables: Mapping[str, str] = environment
    return WorkerConfig.read(vars(parser.parse_args(flags)), variables)


def test_defaults() -> None:
    config = read()
    assert config == WorkerConfig()
    assert (config.model, config.listen, config.metrics_port) == ((Path("models/zfnet"),), "localhost:8501", None)
    assert (config.queue, config.cache, config.spare_networks, config.device) == (16, 8, 1, "cpu")
    assert not config.exit_with_parent


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    config = read("--queue", "3", "--model", "a,b", ZFWORKER_QUEUE="1", ZFWORKER_CACHE="2", ZFWORKER_DEVICE="")
    assert (config.queue, config.cache, config.device) == (3, 2, "cpu")
    assert config.model == (Path("a"), Path("b"))
    assert read(ZFWORKER_EXIT_WITH_PARENT="true").exit_with_parent


def test_the_variables_of_the_server_do_not_change_the_worker() -> None:
    servers = {"ZFSERVE_WORKER_DEVICE": "cuda", "ZFSERVE_THREADS": "1", "ZFSERVE_WORKER_TLS_CERT": "c"}
    assert read(**servers) == WorkerConfig()


def test_a_flag_for_traces_wins_over_the_variables_of_opentelemetry() -> None:
    other_protocol = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    assert read(OTEL_EXPORTER_OTLP_ENDPOINT="http://a:4317").otlp_endpoint == "http://a:4317"
    assert read("--otlp-endpoint", "http://a:4317", **other_protocol).otlp_endpoint == "http://a:4317"


def test_all_faults_are_reported_at_once_each_by_its_flag_or_variable() -> None:
    with pytest.raises(ConfigError) as refused:
        read("--queue", "0", "--drain-grace=-1", ZFWORKER_METRICS_PORT="tcp://10.0.0.1:9501")
    assert str(refused.value).split("; ") == [
        "--drain-grace: '-1' should be greater than or equal to 0",
        "ZFWORKER_METRICS_PORT: 'tcp://10.0.0.1:9501' should be a valid integer, unable to parse string as an integer",
        "--queue: '0' should be greater than or equal to 1",
    ]


def test_all_contradictions_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        read("--tls-key", "k", "--tls-client-ca", "c", "--listen", "0.0.0.0:1")
    first, second, third = str(refused.value).split("; ", 2)
    assert (first, second) == ("--tls-cert and --tls-key go together", "--tls-client-ca needs --tls-cert")
    assert third.startswith("--listen 0.0.0.0:1 can be reached from other machines")
    assert "; give --tls-cert and --tls-key, or --allow-insecure" in third
