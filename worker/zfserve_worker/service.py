"""The worker's gRPC service: checks a request and streams what the torch thread makes of it."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.deadline import Deadline
from zfserve_runtime.errors import InvalidInput, WorkerMismatch
from zfserve_runtime.projection_request import check_projection_request

from zfserve_worker.projector import Projector, identity
from zfserve_worker.torch_thread import TorchThread


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, manifest: Manifest, projector: Projector, torch_thread: TorchThread) -> None:
        self._manifest = manifest
        self._projector = projector
        self._torch_thread = torch_thread

    async def Describe(  # noqa: N802 - the name in the proto
        self, request: worker_pb2.DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.DescribeResponse:
        return worker_pb2.DescribeResponse(models=[identity(self._manifest)])

    async def Project(  # noqa: N802 - the name in the proto
        self, request: worker_pb2.ProjectRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[worker_pb2.ProjectResponse]:
        self._check(request)
        results = self._projector.project(request)
        stream = self._torch_thread.stream(results, Deadline.of(context), self._projector.metrics)
        async with aclosing(stream) as projections:
            async for projection in projections:
                yield worker_pb2.ProjectResponse(projection=projection)

    def _check(self, request: worker_pb2.ProjectRequest) -> None:
        """Raises WorkerMismatch, NotFound, OutOfRange or InvalidInput."""
        if request.fingerprint != self._manifest.fingerprint:
            raise WorkerMismatch(
                "the projection worker holds other weights than the server; start both on the same bundle"
            )
        check_projection_request(request, self._manifest)
        spec = self._manifest.input
        wanted = spec.height * spec.width * 3
        if len(request.pixels) != wanted:
            raise InvalidInput(
                f"the input takes {wanted} bytes ({spec.width} x {spec.height}, RGB), not {len(request.pixels)}",
                field="pixels",
            )
