"""Tests which threads of gRPC read the bytes of calls, in `zfserve serve` as it is really started.

tests/worker/test_worker_command.py does the same for the worker.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from processes import polling_pool_runs, running_service
from zfserve_runtime.bundle import Bundle

FLAGS = ("--no-worker", "--precision", "fp32", "--engine", "onnx-cpu", "--threads", "1")


@pytest.mark.parametrize(("experiments", "is_pooled"), [(None, False), ("", True)])
def test_the_pool_reads_no_calls_unless_the_operator_asks_for_it(
    experiments: str | None,
    is_pooled: bool,
    colour_bundle: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    if experiments is not None:
        monkeypatch.setenv("GRPC_EXPERIMENTS", experiments)
    with running_service(colour_bundle().folder, tmp_path, *FLAGS) as service:
        calls = 200
        runs = polling_pool_runs(service.process.pid, service.address, calls)
    assert (runs >= calls) is is_pooled
    assert "experiment" not in service.log.read_text(), "gRPC may not know the experiment any more"
