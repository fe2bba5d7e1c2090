"""Serves gRPC in the worker: checks each request and has it computed in the torch thread."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.projection_validation import validate_explanation_request, validate_projection_request
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
        projector = await self._networks.find(request.fingerprint)
        validate_explanation_request(request, projector.manifest)
        check_pixels(request.pixels, projector.manifest)
        stream = self._torch_thread.stream(projector.explain(request), Deadline.of(context), projector.metrics)
        async with aclosing(stream) as explanations:
            return worker_pb2.ExplainResponse(explanation=await anext(explanations))

    async def Project(  # noqa: N802 - the name in the proto
        self, request: worker_pb2.ProjectRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[worker_pb2.ProjectResponse]:
        projector = await self._networks.find(request.fingerprint)
        validate_projection_request(request, projector.manifest)
        check_pixels(request.pixels, projector.manifest)
        stream = self._torch_thread.stream(projector.project(request), Deadline.of(context), projector.metrics)
        async with aclosing(stream) as projections:
            async for projection in projections:
                yield worker_pb2.ProjectResponse(projection=projection)


def check_pixels(pixels: bytes, manifest: Manifest) -> None:
    """Raises InvalidInput if the pixels do not have the size of the network's input."""
    spec = manifest.input
    input_bytes = spec.height * spec.width * 3
    if len(pixels) != input_bytes:
        raise InvalidInput(
            f"the input takes {input_bytes} bytes ({spec.width} x {spec.height}, RGB), not {len(pixels)}",
            field="pixels",
        )
