"""Tests starting and stopping a service as a process. A stand-in replaces `zfserve serve`."""

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
    """Returns the file of the module that child processes run as `zfserve serve`."""
    package = tmp_path / "stand-in" / "zfserve_server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package / "serve_command.py"


def test_the_service_runs_until_the_block_ends(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_error_quotes_the_log_of_a_service_that_ends_at_once(stand_in: Path, tmp_path: Path) -> None:
    stand_in.write_text(STAND_IN.format(body='print("no bundle there"); return 2'))
    with (
        pytest.raises(ServiceFailed, match="ended before it was ready:\nno bundle there"),
        running_service(Path("models/zfnet"), tmp_path),
    ):
        pass


def test_a_service_that_is_never_ready_is_stopped(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_process, "START_TIMEOUT_S", 0.3)
    stand_in.write_text(STAND_IN.format(body="threading.Event().wait()"))
    with pytest.raises(ServiceFailed, match="not ready within"), running_service(Path("m"), tmp_path):
        pass


def test_an_error_in_the_block_stops_the_service(stand_in: Path, tmp_path: Path) -> None:
    body = """
    ready = pathlib.Path(arguments.ready_file)
    ready.with_name("partial").write_text(json.dumps({"port": os.getpid(), "metrics_port": 1}))
    ready.with_name("partial").replace(ready)
    threading.Event().wait()"""
    stand_in.write_text(STAND_IN.format(body=body))
    with suppress(KeyboardInterrupt), running_service(Path("m"), tmp_path) as service:
        pid = int(service.address.split(":")[1])
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
