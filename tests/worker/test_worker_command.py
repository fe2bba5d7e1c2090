"""Tests the worker as a process: how it starts, answers, stops, and refuses settings that cannot work."""

import argparse
import asyncio
import json
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes import worker_that_loses_its_device
from fakes.residual_model import HEIGHT, WIDTH
from processes import polling_pool_runs
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime.bundle import Bundle
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.grpc.shutdown import EXIT_ENGINE_LOST
from zfserve_runtime.grpc.status import from_call_error
from zfserve_worker.worker_command import add_arguments, run

PROGRAM = ("-m", "zfserve_worker")
FRAGILE = (str(Path(worker_that_loses_its_device.__file__)),)


@asynccontextmanager
async def started(
    bundle: Bundle, *flags: str, program: Sequence[str] = PROGRAM
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """Starts the worker with a pipe as its standard input. Yields the process and its log line `worker ready`."""
    arguments = ["--model", str(bundle.folder), "--threads", "1", "--log-format", "json", *flags]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *program, *arguments, stdin=pipe, stderr=pipe)
    try:
        assert process.stderr is not None
        async for line in process.stderr:
            ready = json.loads(line)
            if ready["message"] == "worker ready":
                break
        else:
            pytest.fail("the worker ended before it was ready")
        yield process, ready
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def describe(address: str) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await worker_pb2_grpc.WorkerServiceStub(channel).Describe(worker_pb2.DescribeRequest())
        name: str = answer.models[0].name
        return name


async def test_serves_on_a_unix_socket_until_sigterm(bundle: Bundle, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/worker.sock"
    async with started(bundle, "--listen", address, "--metrics-port", "0") as (process, ready):
        assert ready["address"] == address
        assert await describe(address) == "tiny"
        metrics = await asyncio.to_thread(read, f"http://localhost:{ready['metrics_port']}/metrics")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert 'zfserve_requests_total{method="/zfserve.worker.v1.WorkerService/Describe",status="OK"} 1.0' in metrics
    assert f'fingerprint="{bundle.manifest.fingerprint}"' in metrics


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        content: bytes = answer.read()
    return content.decode()


@pytest.mark.parametrize(("experiments", "is_pooled"), [(None, False), ("", True)])
async def test_the_pool_reads_no_calls_unless_the_operator_asks_for_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, experiments: str | None, is_pooled: bool
) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    if experiments is not None:
        monkeypatch.setenv("GRPC_EXPERIMENTS", experiments)
    calls = 200
    async with started(bundle, "--listen", "localhost:0") as (process, ready):
        runs = await asyncio.to_thread(polling_pool_runs, process.pid, ready["address"], calls)
    assert (runs >= calls) is is_pooled


async def test_ends_with_its_parent(bundle: Bundle) -> None:
    async with started(bundle, "--listen", "localhost:0", "--exit-with-parent") as (process, ready):
        assert await describe(ready["address"]) == "tiny"
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0


async def test_a_lost_device_ends_the_process(bundle: Bundle) -> None:
    def photo(shade: int) -> worker_pb2.ProjectRequest:
        pixels = bytes([shade]) * (HEIGHT * WIDTH * 3)
        return worker_pb2.ProjectRequest(
            fingerprint=bundle.manifest.fingerprint, pixels=pixels, layer="stage1", strongest=1
        )

    flags = ("--listen", "localhost:0", "--drain-delay", "0")
    async with started(bundle, *flags, program=FRAGILE) as (process, ready):
        assert ready["device"] == "cpu"
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            worker = worker_pb2_grpc.WorkerServiceStub(channel)
            assert len([answer async for answer in worker.Project(photo(128))]) == 1
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await worker.Project(photo(255)).read()
            assert isinstance(from_call_error(failed.value), EngineLost)
        assert await process.wait() == EXIT_ENGINE_LOST


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "nowhere"], "error: there is no bundle at nowhere"),
        (["--listen", "nonsense", "--allow-insecure"], "error: cannot listen on nonsense"),
        (["--listen", "0.0.0.0:0"], "error: --listen 0.0.0.0:0 can be reached from other machines"),
        (["--tls-cert", "c"], "error: --tls-cert and --tls-key go together"),
        (["--tls-client-ca", "c"], "error: --tls-client-ca needs --tls-cert"),
        (["--exit-with-parent"], "error: standard input is not a pipe"),
        (["--device", "cuda:99"], "error: there is no device 'cuda:99' here; choose cpu, cuda or auto"),
        (["--queue", "0"], "error: --queue: '0' should be greater than or equal to 1"),
        (["--metrics-port", "70000"], "error: --metrics-port: '70000' should be less than or equal to 65535"),
        (["--log-level", "loud"], "error: --log-level: 'loud' should be 'debug', 'info', 'warning' or 'error'"),
    ],
)
@pytest.mark.usefixtures("root_logger")
def test_an_unusable_setting_is_one_line_and_status_2(
    bundle: Bundle, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--model", str(bundle.folder), "--listen", "localhost:0", *flags])) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert message in line


@pytest.mark.usefixtures("root_logger")
def test_a_metrics_port_in_use_is_named_with_its_flag(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        flags = ["--model", str(bundle.folder), "--listen", "localhost:0", "--metrics-port", port]
        assert run(parser.parse_args(flags)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert line == f"error: cannot listen on 127.0.0.1:{port}; is it in use? choose another with --metrics-port"
