"""Tests projections on a GPU. They have not run yet: only the deconvnet ran on an H200, without the worker."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from zfserve_engines.golden import load_golden
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import Bundle
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_worker.projector import open_projector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch is without CUDA here: make TORCH_INDEX=..."),
]

STICKY = """
import asyncio, torch
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.errors import EngineLost
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_worker.torch_thread import TorchThread

def breaking():
    yield torch.zeros(1, device="cuda")[torch.tensor([7], device="cuda")].cpu()

async def main():
    thread = TorchThread(1, 1, on_lost=lambda: print("lost", flush=True))
    for _ in range(2):
        try:
            async for _ in thread.stream(breaking(), Deadline(), Metrics().of_model("tiny", "1")):
                pass
        except EngineLost:
            print("told", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv3", "conv5", "pool5"])
@pytest.mark.parametrize("unit", [pb.UnitRule(), pb.UnitRule(whole_map=pb.WholeMap())])
def test_the_card_projects_what_the_cpu_projects(
    gpu_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, layer: str, unit: pb.UnitRule
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as the worker does
    request = worker_pb2.ProjectRequest(
        pixels=load_golden(gpu_bundle).pixels[0].tobytes(),
        layer=layer,
        strongest=4,
        unit=unit,
        format=pb.PICTURE_FORMAT_FLOAT32,
    )
    here, there = (
        list(open_projector(gpu_bundle, 1, Metrics(), torch.device(name)).project(request)) for name in ("cpu", "cuda")
    )
    assert [answer.map for answer in there] == [answer.map for answer in here]
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.activation == pytest.approx(ours.activation, rel=1e-4)
        assert (theirs.unit, theirs.box) == (ours.unit, ours.box)
        expected, found = (np.frombuffer(answer.float32.data, "<f4") for answer in (ours, theirs))
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_sticky_error_is_a_lost_worker(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", STICKY], capture_output=True, text=True, timeout=100, check=False)
    assert ended.stdout.split() == ["lost", "told", "lost", "told"], ended.stderr[-2000:]
