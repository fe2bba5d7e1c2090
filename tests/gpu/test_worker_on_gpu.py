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
from zfserve_worker.memory_limits import memory_limits
from zfserve_worker.projector import open_projector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA here; see TORCH_INDEX in Makefile"),
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
            print("raised", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv3", "conv5", "pool5"])
@pytest.mark.parametrize("unit", [pb.UnitRule(), pb.UnitRule(whole_map=pb.WholeMap())])
def test_projections_are_those_of_the_cpu(
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
    on_cpu, on_gpu = (
        [
            answer
            for answer in open_projector(gpu_bundle, memory_limits(1, device), Metrics(), device).project(request)
            if answer is not None
        ]
        for device in map(torch.device, ("cpu", "cuda"))
    )
    assert [answer.map for answer in on_gpu] == [answer.map for answer in on_cpu]
    for wanted, answer in zip(on_cpu, on_gpu, strict=True):
        assert answer.activation == pytest.approx(wanted.activation, rel=1e-4)
        assert (answer.unit, answer.box) == (wanted.unit, wanted.box)
        expected, found = (np.frombuffer(projection.float32.data, "<f4") for projection in (wanted, answer))
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_sticky_error_is_a_lost_worker(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", STICKY], capture_output=True, text=True, timeout=100, check=False)
    assert ended.stdout.split() == ["lost", "raised", "lost", "raised"], ended.stderr[-2000:]
