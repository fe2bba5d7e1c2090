"""The process `zfserve serve` ends with its own exit status when its engine is lost."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from processes import running_service
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_runtime.bundle import Bundle
from zfserve_runtime.grpc.shutdown import EXIT_ENGINE_LOST

ColourBundle = Callable[..., Bundle]

FRAGILE = Path(__file__).parents[2] / "fakes" / "server_that_loses_its_engine.py"


def classify(address: str, value: int) -> pb.ClassifyResponse:
    raw = pb.RawPixels(width=8, height=8, data=bytes([value]) * 192)
    with grpc.insecure_channel(address) as channel:
        request = pb.ClassifyRequest(image=pb.Image(raw=raw))
        answer: pb.ClassifyResponse = VisionServiceStub(channel).Classify(request, timeout=30)
    return answer


def test_a_lost_engine_ends_the_process_with_its_own_exit_status(colour_bundle: ColourBundle, tmp_path: Path) -> None:
    flags = ("--no-worker", "--precision", "fp32", "--engine", "onnx-cpu", "--threads", "1")
    with running_service(
        colour_bundle().folder, tmp_path, *flags, program=(str(FRAGILE),), ends_with=EXIT_ENGINE_LOST
    ) as service:
        assert len(classify(service.address, 100).classes) == 3
        with pytest.raises(grpc.RpcError) as refused:
            classify(service.address, 255)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        service.process.wait(timeout=60)
    log = service.log.read_text()
    (last_line,) = (line for line in log.splitlines() if "supervisor" in line)
    assert "critical" in last_line.lower()
    assert "an engine was lost" in last_line
