"""The client over grpc.aio; requests, results and errors are those of `client`."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_protos.v1 import zfserve_pb2
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve import results
from zfserve.base_client import BaseClient, pause_before_retry
from zfserve.channel import ASK_THE_UNHEALTHY, Options, TlsOptions
from zfserve.client import IN_FLIGHT, STRONGEST
from zfserve.errors import Cancelled, Overloaded, ZfserveError, translated
from zfserve.requests import (
    ImageSource,
    PictureFormat,
    UnitRule,
    choose_maps,
    classify_request,
    model_selector,
    project_request,
)
from zfserve.results import Classification, ModelDescription, ModelStatus, Projection
from zfserve.tracing import CLASSIFY, DESCRIBE, LIST, PROJECT, traced

if TYPE_CHECKING:
    from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceAsyncStub


class AsyncClient(BaseClient):
    """`Client` for asyncio: the same arguments, results and errors. Make it inside a running event loop."""

    def _open(self, target: str, options: Options, tls: TlsOptions | None) -> None:
        self._channel = _connect(target, options, tls)
        self._health_channel = _connect(target, [*options, ASK_THE_UNHEALTHY], tls)
        self._stub: VisionServiceAsyncStub = VisionServiceStub(self._channel)

    async def classify(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        features: bool = False,
        timeout_s: float | None = None,
    ) -> Classification:
        """See `Client.classify`. A file is read in a thread."""
        request = await asyncio.to_thread(classify_request, image, top_k, features, self._max_message_bytes)
        request.model.MergeFrom(model_selector(model, version))
        return await self._classify(request, self._within(timeout_s))

    async def _classify(self, request: zfserve_pb2.ClassifyRequest, timeout_s: float) -> Classification:
        throttle = self._throttle(CLASSIFY, request.model)
        with traced(CLASSIFY, self._tracer_provider) as trace, throttle.asking(), self._translated():
            metadata = (*self._metadata, *trace)
            response = await self._stub.Classify(request, timeout=timeout_s, metadata=metadata)
        return results.classification(response)

    async def classify_many(
        self,
        images: Iterable[ImageSource],
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        features: bool = False,
        timeout_s: float | None = None,
        in_flight: int = IN_FLIGHT,
    ) -> AsyncGenerator[Classification | ZfserveError]:
        """See `Client.classify_many`."""
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        selector = model_selector(model, version)

        async def outcome(image: ImageSource) -> Classification | ZfserveError:
            try:
                request = await asyncio.to_thread(classify_request, image, top_k, features, self._max_message_bytes)
                request.model.MergeFrom(selector)
                until_s = time.monotonic() + self._within(timeout_s)
                while True:
                    try:
                        return await self._classify(request, max(0.0, until_s - time.monotonic()))
                    except Overloaded as error:
                        pause_s = pause_before_retry(error, until_s)
                    await asyncio.sleep(pause_s)
            except ZfserveError as error:
                return error

        under_way: deque[asyncio.Task[Classification | ZfserveError]] = deque()
        try:
            for image in images:
                if len(under_way) == in_flight:
                    yield await under_way.popleft()
                under_way.append(asyncio.create_task(outcome(image)))
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def project(
        self,
        image: ImageSource,
        layer: str,
        *,
        model: str | None = None,
        version: str | None = None,
        strongest: int = STRONGEST,
        maps: Sequence[int] | None = None,
        for_class: str | None = None,
        unit: UnitRule = "strongest",
        format: PictureFormat = "png",  # noqa: A002
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Projection]:
        """See `Client.project`. Closing the generator (`contextlib.aclosing`) stops the work."""
        selected = choose_maps(strongest, maps, for_class)
        request = await asyncio.to_thread(
            project_request, image, layer, selected, unit, format, self._max_message_bytes
        )
        request.model.MergeFrom(model_selector(model, version))
        throttle = self._throttle(PROJECT, request.model)
        with traced(PROJECT, self._tracer_provider) as trace, throttle.asking(), self._translated():
            metadata = (*self._metadata, *trace)
            call = self._stub.Project(request, timeout=self._within(timeout_s), metadata=metadata)
            try:
                async for response in call:
                    yield results.projection(response)
            finally:
                call.cancel()

    async def describe(
        self, *, model: str | None = None, version: str | None = None, timeout_s: float | None = None
    ) -> ModelDescription:
        """See `Client.describe`."""
        request = zfserve_pb2.DescribeModelRequest(model=model_selector(model, version))
        with traced(DESCRIBE, self._tracer_provider) as trace, self._translated():
            metadata = (*self._metadata, *trace)
            response = await self._stub.DescribeModel(request, timeout=self._within(timeout_s), metadata=metadata)
        return results.model_description(response)

    async def list_models(self, *, timeout_s: float | None = None) -> tuple[ModelStatus, ...]:
        """See `Client.list_models`."""
        with traced(LIST, self._tracer_provider) as trace, self._translated():
            response = await self._stub.ListModels(
                zfserve_pb2.ListModelsRequest(),
                timeout=self._within(timeout_s),
                metadata=(*self._metadata, *trace),
            )
        return tuple(map(results.model_status, response.models))

    async def is_serving(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """See `Client.is_serving`."""
        request = health_pb2.HealthCheckRequest(service=service)
        with self._translated():
            answer = await health_pb2_grpc.HealthStub(self._health_channel).Check(
                request, timeout=self._within(timeout_s), metadata=self._metadata
            )
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raises what `Client` raises, also where the client is closed meanwhile, for which gRPC cancels the caller."""
        self._check_open()
        try:
            with translated():
                yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise Cancelled("the client was closed", grpc.StatusCode.CANCELLED) from error

    async def close(self) -> None:
        """See `Client.close`."""
        self._closed = True
        await self._channel.close()
        await self._health_channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _connect(target: str, options: Options, tls: TlsOptions | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, tls.credentials(), options)
