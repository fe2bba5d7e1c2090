"""The process `zfserve serve` runs out of file descriptors, and is stopped under load."""

import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
from processes import Service, running_service
from zfserve_bench.inputs import raw_request
from zfserve_bench.service.drain import Outcome, drain_once, report
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]

FLAGS = ("--no-worker", "--engine", "onnx-cpu", "--precision", "fp32", "--threads", "1")
REQUEST = pb.ClassifyRequest(image=pb.Image(raw=pb.RawPixels(width=8, height=8, data=bytes(192))))
DRAINS = 3
"""The number of drains here. `zfserve bench drain` makes 50."""


@contextmanager
def client(service: Service) -> Iterator[VisionServiceStub]:
    """Yields a stub on a connection of its own."""
    with grpc.insecure_channel(service.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield VisionServiceStub(channel)


def test_without_file_descriptors_open_connections_work_and_new_ones_recover_later(
    colour_bundle: ColourBundle, tmp_path: Path
) -> None:
    with running_service(colour_bundle().folder, tmp_path, *FLAGS) as service, client(service) as connected:
        connected.Classify(REQUEST, timeout=60)
        process = service.process.pid
        opened = len(list(Path(f"/proc/{process}/fd").iterdir()))
        limits = resource.prlimit(process, resource.RLIMIT_NOFILE)
        resource.prlimit(process, resource.RLIMIT_NOFILE, (opened + 2, limits[1]))
        with ExitStack() as stack:
            address = ("127.0.0.1", int(service.address.rpartition(":")[2]))
            for _ in range(10):
                stack.enter_context(socket.create_connection(address))
            with client(service) as late:
                call = late.Classify.future(REQUEST, timeout=60, wait_for_ready=True)
                for _ in range(20):
                    connected.Classify(REQUEST, timeout=60)
                assert not call.done(), "the server cannot have accepted its connection"
                stack.close()
                call.result()
        connected.Classify(REQUEST, timeout=60)


def test_no_accepted_request_is_lost_when_a_process_is_stopped_under_load(
    colour_bundle: ColourBundle, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    requests, model = [raw_request(image) for image in pixels], colour_bundle().folder
    drains = []
    for number in range(DRAINS):
        (tmp_path / str(number)).mkdir()
        drains.append(drain_once(model, tmp_path / str(number), requests, number % 2 == 1, *FLAGS[1:]))
    assert all(drain.count(Outcome.ANSWERED) for drain in drains)
    assert [finding.name for finding in report(drains).findings if finding.holds is False] == []
