"""Serves gRPC in the worker: checks each request and streams its projections from the torch thread."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.projection_validation import validate_projection_request
from zfserve_runtime.release import RELEASE

from zfserve_worker.network_cache import NetworkCache
from zfserve_worker.projector import identity
from zfserve_worker.torch_thread import TorchThread


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """Answers the calls of servers. worker.proto describes them."""

    def __init__(self, networks: NetworkCache, torch_thread: TorchThread) -> None:
        self._networks = networks
        self._torch_thread = torch_thread

    async def Describe(  # noqa: N802 - the name in the proto
        self, request: worker_pb2.DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.DescribeResponse:
        if request.fingerprints:
            await self._networks.announce(request.fingerprints)
        models = [identity(manifest) for manifest in self._networks.manifests]
        return worker_pb2.DescribeResponse(models=models, release=RELEASE)

    async def Explain(  # noqa: N802 - the name in the proto
        self, request: worker_pb2.ExplainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.ExplainResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this release does not explain yet")

    async def Project(  # noqa: N802 - the name in the proto
        self, request: worker_pb2.ProjectRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[worker_pb2.ProjectResponse]:
        projector = await self._networks.find(request.fingerprint)
        check_request(request, projector.manifest)
        stream = self._torch_thread.stream(projector.project(request), Deadline.of(context), projector.metrics)
        async with aclosing(stream) as projections:
            async for projection in projections:
                yield worker_pb2.ProjectResponse(projection=projection)


def check_request(request: worker_pb2.ProjectRequest, manifest: Manifest) -> None:
    """Checks a request against the network that it names.

    Raises:
        NotFound: the network has no such layer or class.
        OutOfRange: the layer has no such map or unit.
        InvalidInput: another field cannot be used, or the pixels do not have the size of the network's input.
    """
    validate_projection_request(request, manifest)
    spec = manifest.input
    input_bytes = spec.height * spec.width * 3
    if len(request.pixels) != input_bytes:
        raise InvalidInput(
            f"the input takes {input_bytes} bytes ({spec.width} x {spec.height}, RGB), not {len(request.pixels)}",
            field="pixels",
        )
