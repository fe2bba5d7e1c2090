"""The public service's door: the port is open before the engine is. Built by `app`."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceServicer
from zfserve_runtime.errors import ServiceError

from zfserve_server.service import VisionService

Context = grpc.aio.ServicerContext[Any, Any]


class Entrance(VisionServiceServicer):
    """Refuses every call until `open`, and then lets the service answer.

    gRPC takes handlers only before its server is started, and binds them then; the service is built when the engine is
    there.

    Args:
        refusal: what a call meets until then.
    """

    def __init__(self, refusal: Callable[[], ServiceError]) -> None:
        self._refusal = refusal
        self._service: VisionService | None = None

    @property
    def is_open(self) -> bool:
        return self._service is not None

    def open(self, service: VisionService) -> None:
        self._service = service

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802
        return await self._inside().Classify(request, context)

    def Project(self, request: pb.ProjectRequest, context: Context) -> AsyncIterator[pb.ProjectResponse]:  # noqa: N802
        return self._inside().Project(request, context)

    async def DescribeModel(  # noqa: N802
        self, request: pb.DescribeModelRequest, context: Context
    ) -> pb.DescribeModelResponse:
        return await self._inside().DescribeModel(request, context)

    def _inside(self) -> VisionService:
        if self._service is None:
            raise self._refusal()
        return self._service
