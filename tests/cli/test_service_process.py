"""A service started and stopped as a process; `zfserve serve` itself is a stand-in."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from zfserve_cli import service_process
from zfserve_cli.service_process import ServiceFailed, running_service

STAND_IN = """
import json, os, pathlib, signal, sys, threading

def add_arguments(parser):
    for name in ("--model", "--host", "--port", "--metrics-port", "--ready-file"):
        parser.add_argument(name)

def run(arguments):
    {body}
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose text becomes the body of `zfserve serve` in child processes."""
    package = tmp_path / "stand-in" / "zfserve_server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package / "serve_command.py"


def test_the_service_runs_while_it_is_needed_and_no_longer(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("stopped").touch(), os._exit(0)))
    ready = pathlib.Path(arguments.ready_file)
    told = {"port": 1234, "metrics_port": 5678, "pid": os.getpid(), "environment": dict(os.environ)}
    told["cpus"] = list(os.sched_getaffinity(0))
    ready.with_name("partial").write_text(json.dumps(told))
    ready.with_name("partial").replace(ready)
    threading.Event().wait()"""
    stand_in.write_text(STAND_IN.format(body=body))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZFSERVE_PORT", "1")
    one_cpu = [min(os.sched_getaffinity(0))]
    with running_service(Path("models/zfnet"), tmp_path, cpus=one_cpu) as service:
        assert (service.address, service.metrics_address) == ("127.0.0.1:1234", "127.0.0.1:5678")
        told = json.loads((tmp_path / "service.ready").read_text())
        assert told["cpus"] == one_cpu
        pid = told["pid"]
        os.kill(pid, 0)
        assert not any(name.startswith("ZFSERVE_") for name in told["environment"])
    assert (tmp_path / "stopped").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_service_that_ends_at_once_is_quoted(stand_in: Path, tmp_path: Path) -> None:
    stand_in.write_text(STAND_IN.format(body='print("no bundle there"); return 2'))
    with (
        pytest.raises(ServiceFailed, match="ended before it was ready:\nno bundle there"),
        running_service(Path("models/zfnet"), tmp_path),
    ):
        pass


def test_a_service_that_is_never_ready_is_stopped(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_process, "STARTING_S", 0.3)
    stand_in.write_text(STAND_IN.format(body="threading.Event().wait()"))
    with pytest.raises(ServiceFailed, match="not ready within"), running_service(Path("m"), tmp_path):
        pass


def test_the_body_may_fail_and_the_service_is_stopped(stand_in: Path, tmp_path: Path) -> None:
    body = """
    ports = {"port": os.getpid(), "metrics_port": 1}
    pathlib.Path(arguments.ready_file).write_text(json.dumps(ports))
    threading.Event().wait()"""
    stand_in.write_text(STAND_IN.format(body=body))
    with suppress(KeyboardInterrupt), running_service(Path("m"), tmp_path) as service:
        pid = int(service.address.split(":")[1])
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
