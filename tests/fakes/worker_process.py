"""This worker process holds back each projection after the first until the file `FOLDER/go` exists.

Run as a program: `worker_process.py ADDRESS FOLDER FINGERPRINT`. It writes its process id to `FOLDER/pid`.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from zfserve_protos.methods import WORKER_SERVICE
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_protos.worker.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from zfserve_runtime.grpc.health import SERVER, Health, add_health_and_reflection

Context = grpc.aio.ServicerContext[Any, Any]


class HeldWorker(WorkerServiceServicer):
    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._go = folder / "go"
        self._fingerprint = fingerprint

    async def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: Context
    ) -> worker_pb2.DescribeResponse:
        return worker_pb2.DescribeResponse(models=[pb.ModelIdentity(fingerprint=self._fingerprint)])

    async def Explain(  # noqa: N802
        self, request: worker_pb2.ExplainRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> worker_pb2.ExplainResponse:
        raise NotImplementedError

    async def Project(  # noqa: N802
        self, request: worker_pb2.ProjectRequest, context: Context
    ) -> AsyncIterator[worker_pb2.ProjectResponse]:
        for rank in range(request.strongest):
            while rank and not self._go.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.02)
            box = pb.Box(left=0, top=0, right=1, bottom=1)
            projection = pb.ProjectResponse(map=rank, box=box, png=b"png", rank=rank, total=request.strongest)
            yield worker_pb2.ProjectResponse(projection=projection)


async def main(address: str, folder: Path, fingerprint: str) -> None:
    server, health = grpc.aio.server(), Health(SERVER, WORKER_SERVICE)
    add_WorkerServiceServicer_to_server(HeldWorker(folder, fingerprint), server)
    add_health_and_reflection(server, health, WORKER_SERVICE)
    server.add_insecure_port(address)
    (folder / "pid").write_text(str(os.getpid()))
    await server.start()
    health.serving(SERVER, WORKER_SERVICE)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
