"""Tests the settings of `zfserve serve`: flags, environment, defaults, checks, and how the command reports faults."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from zfserve_runtime.bundle import Artefact, Bundle
from zfserve_runtime.settings import ConfigError
from zfserve_server.config import ServerConfig
from zfserve_server.serve_command import add_arguments, run


def parse(*flags: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return vars(parser.parse_args(flags))


def read(flags: Mapping[str, object], environment: Mapping[str, str]) -> ServerConfig:
    return ServerConfig.read(flags, environment)


def test_defaults() -> None:
    config = read(parse(), {})
    assert config == ServerConfig()
    assert (config.model, config.host, config.port, config.metrics_port) == (
        (Path("models/zfnet"),),
        "127.0.0.1",
        8500,
        9500,
    )
    assert config.worker


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"ZFSERVE_PORT": "1", "ZFSERVE_MAX_QUEUE": "2", "ZFSERVE_WORKER": "false", "ZFSERVE_TLS_CERT": ""}
    config = read(parse("--port", "3", "--max-image-bytes", "5000"), environment)
    assert (config.port, config.max_queue, config.max_image_bytes, config.worker) == (3, 2, 5000, False)
    assert config.tls_cert is None


def test_model_folders_are_split_at_commas_and_the_flag_can_be_repeated() -> None:
    folders = (Path("a"), Path("b/c"), Path("d"))
    assert read(parse("--model", "a,b/c", "--model", "d"), {"ZFSERVE_MODEL": "x"}).model == folders
    assert read(parse(), {"ZFSERVE_MODEL": "a,b/c,d"}).model == folders
    with pytest.raises(ConfigError, match="--model"):
        read(parse("--model", ","), {})


def test_no_worker() -> None:
    assert not read(parse("--no-worker"), {}).worker
    assert read(parse("--worker"), {"ZFSERVE_WORKER": "0"}).worker


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        read(parse("--port", "70000", "--max-queue", "none", "--precision", "fp64"), {})
    for flag in ("--port", "--max-queue", "--precision"):
        assert flag in str(refused.value)


def test_all_contradictions_are_reported_at_once() -> None:
    flags = ("--tls-cert", "c", "--port", "1", "--metrics-port", "1", "--no-worker", "--worker-address", "w:1")
    with pytest.raises(ConfigError) as refused:
        read(parse(*flags), {})
    for flag in ("--tls-key", "--metrics-port", "--worker-address"):
        assert flag in str(refused.value)


def test_help_names_every_setting_its_default_and_the_environment() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for name in ServerConfig.model_fields:
        assert "--" + name.replace("_", "-") in text
    assert "ZFSERVE_DRAIN_GRACE" in text
    assert "(default: 8500)" in text


@pytest.mark.usefixtures("root_logger")
def test_a_missing_model_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--model", str(tmp_path / "none"), "--port", "0"])) == 2
    assert "zfserve export" in capsys.readouterr().err


@pytest.mark.usefixtures("root_logger")
def test_an_engine_that_cannot_serve_ends_the_command_with_one_line(
    colour_bundle: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine fails its check, because no output is within a negative tolerance of the golden outputs."""
    bundle = colour_bundle(artefacts={"fp32": Artefact(file="model.onnx", golden_tolerance=-1.0)})
    flags = ("--port", "0", "--metrics-port", "0", "--no-worker", "--engine", "onnx-cpu")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--model", str(bundle.folder), *flags])) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert "the engine onnx-cpu cannot serve: the fp32 engine" in line


@pytest.mark.parametrize(
    ("flags", "accepted"),
    [
        (("--host", "0.0.0.0"), False),
        (("--host", "::"), False),
        (("--host", "0.0.0.0", "--allow-insecure"), True),
        (("--host", "0.0.0.0", "--tls-cert", "c", "--tls-key", "k"), True),
        (("--host", "::1"), True),
        (("--metrics-host", "0.0.0.0"), True),
    ],
)
def test_a_public_address_needs_tls_or_allow_insecure(flags: tuple[str, ...], accepted: bool) -> None:
    if accepted:
        assert read(parse(*flags), {}).metrics_host == ("0.0.0.0" if "--metrics-host" in flags else "127.0.0.1")
        return
    with pytest.raises(ConfigError, match=r"can be reached from other machines.* --allow-insecure"):
        read(parse(*flags), {})
    assert read(parse(*flags), {"ZFSERVE_ALLOW_INSECURE": "1"}).allow_insecure


def test_tls_to_the_worker_needs_all_of_its_settings() -> None:
    with pytest.raises(ConfigError) as refused:
        read(parse("--worker-tls-cert", "c"), {})
    for complaint in ("--worker-tls-cert and --worker-tls-key", "needs --worker-tls-ca"):
        assert complaint in str(refused.value)
    with pytest.raises(ConfigError, match="needs --worker-address"):
        read(parse("--worker-tls-ca", "c"), {})


def test_a_fault_of_the_environment_names_its_variable() -> None:
    environment = {"ZFSERVE_PORT": "tcp://10.96.0.1:8500", "ZFSERVE_MAX_QUEUE": "many"}
    with pytest.raises(ConfigError, match=r"ZFSERVE_PORT: .*; --max-queue: ") as refused:
        read(parse("--max-queue", "0"), environment)
    assert "--port" not in str(refused.value)
