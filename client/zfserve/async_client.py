"""Defines the async client, over grpc.aio. It has the methods of the sync client."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_protos.channel_options import NO_HEALTH_CHECKING, Options
from zfserve_protos.methods import CLASSIFY, DESCRIBE_MODEL, EXPLAIN, LIST_MODELS, PROJECT
from zfserve_protos.v1 import zfserve_pb2
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve import replies
from zfserve.async_study_methods import AsyncStudyMethods
from zfserve.base_client import pause_before_retry
from zfserve.channel import TlsOptions
from zfserve.client import IN_FLIGHT
from zfserve.errors import Cancelled, Overloaded, ZfserveError
from zfserve.explanation import Explanation, ExplanationMethod
from zfserve.model_description import ModelDescription, ModelStatus
from zfserve.requests import (
    LAST,
    STRONGEST,
    ImageSource,
    PictureFormat,
    UnitRule,
    choose_maps,
    classify_request,
    explain_request,
    model_selector,
    project_request,
)
from zfserve.results import Classification, Projection

if TYPE_CHECKING:
    from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceAsyncStub


class AsyncClient(AsyncStudyMethods):
    """Calls a zfserve service from asyncio. It has the arguments, methods, results and errors of `Client`.

    Make it inside a running event loop, and use it in that loop only. Close it with `await client.close()`, or use it
    in an `async with` statement. Files are read in a thread, so that they do not block the event loop.
    """

    def _open(self, target: str, options: Options, tls: TlsOptions | None) -> None:
        self._channel = _connect(target, options, tls)
        self._health_channel = _connect(target, [*options, NO_HEALTH_CHECKING], tls)
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
        """Returns the most probable classes of one photo.

        See [`Client.classify`][zfserve.Client.classify] for arguments and errors.
        """
        request = await asyncio.to_thread(classify_request, image, top_k, features, self._max_message_bytes)
        request.model.MergeFrom(model_selector(model, version))
        return await self._classify(request, self._timeout(timeout_s))

    async def _classify(self, request: zfserve_pb2.ClassifyRequest, timeout_s: float) -> Classification:
        with self._call(CLASSIFY, self._throttle(CLASSIFY, request.model)) as metadata:
            response = await self._stub.Classify(request, timeout=timeout_s, metadata=metadata)
        return replies.classification(response)

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
        """Yields one result or error for each photo, in the order of the photos.

        See [`Client.classify_many`][zfserve.Client.classify_many] for arguments and errors. Closing the generator
        (`contextlib.aclosing`) cancels the calls in flight.
        """
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        selector = model_selector(model, version)

        async def outcome(image: ImageSource) -> Classification | ZfserveError:
            try:
                request = await asyncio.to_thread(classify_request, image, top_k, features, self._max_message_bytes)
                request.model.MergeFrom(selector)
                return await self._classify_with_retries(request, self._timeout(timeout_s))
            except ZfserveError as error:
                return error

        pending: deque[asyncio.Task[Classification | ZfserveError]] = deque()
        try:
            for image in images:
                if len(pending) == in_flight:
                    yield await pending.popleft()
                pending.append(asyncio.create_task(outcome(image)))
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _classify_with_retries(self, request: zfserve_pb2.ClassifyRequest, timeout_s: float) -> Classification:
        """Sends the request again if the server is busy, says when to retry, and there is time left."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                return await self._classify(request, max(0.0, deadline_s - time.monotonic()))
            except Overloaded as error:
                pause_s = pause_before_retry(error, deadline_s)
            await asyncio.sleep(pause_s)

    def project(
        self,
        image: ImageSource,
        layer: str = LAST,
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
        """Yields the pixels that drove each chosen feature map, as soon as each is computed.

        See [`Client.project`][zfserve.Client.project] for arguments and errors. Errors are raised when the generator
        is read, never before. Closing the generator (`contextlib.aclosing`) stops the work on the server.
        """

        def build() -> zfserve_pb2.ProjectRequest:
            selected = choose_maps(strongest, maps, for_class)
            request = project_request(image, layer, selected, unit, format, self._max_message_bytes)
            request.model.MergeFrom(model_selector(model, version))
            return request

        return self._results(PROJECT, self._stub.Project, build, timeout_s, partial(replies.projection, layer=layer))

    async def explain(
        self,
        image: ImageSource,
        *,
        layer: str = LAST,
        class_name: str = "",
        method: ExplanationMethod = "integrated-gradients",
        model: str | None = None,
        version: str | None = None,
        timeout_s: float | None = None,
    ) -> Explanation:
        """Returns a heatmap of the places of one photo that speak for a class, and of those that speak against it.

        See [`Client.explain`][zfserve.Client.explain] for arguments and errors.
        """
        request = await asyncio.to_thread(explain_request, image, layer, class_name, method, self._max_message_bytes)
        request.model.MergeFrom(model_selector(model, version))
        with self._call(EXPLAIN, self._throttle(EXPLAIN, request.model)) as metadata:
            response = await self._stub.Explain(request, timeout=self._timeout(timeout_s), metadata=metadata)
        return replies.explanation(response)

    async def describe(
        self, *, model: str | None = None, version: str | None = None, timeout_s: float | None = None
    ) -> ModelDescription:
        """Returns the description of one version of a model.

        See [`Client.describe`][zfserve.Client.describe] for arguments and errors.
        """
        request = zfserve_pb2.DescribeModelRequest(model=model_selector(model, version))
        with self._call(DESCRIBE_MODEL) as metadata:
            response = await self._stub.DescribeModel(request, timeout=self._timeout(timeout_s), metadata=metadata)
        return replies.model_description(response)

    async def list_models(self, *, timeout_s: float | None = None) -> tuple[ModelStatus, ...]:
        """Returns the status of every version of every model that the server knows of.

        See [`Client.list_models`][zfserve.Client.list_models] for arguments and errors.
        """
        with self._call(LIST_MODELS) as metadata:
            response = await self._stub.ListModels(
                zfserve_pb2.ListModelsRequest(), timeout=self._timeout(timeout_s), metadata=metadata
            )
        return tuple(map(replies.model_status, response.models))

    async def is_serving(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Returns True if the server's health check says that `service` is serving.

        See [`Client.is_serving`][zfserve.Client.is_serving] for arguments and errors.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        with self._translated():
            answer = await health_pb2_grpc.HealthStub(self._health_channel).Check(
                request, timeout=self._timeout(timeout_s), metadata=self._metadata
            )
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raises Cancelled if the client is closed during a call, as `Client` does. grpc.aio would cancel the task."""
        try:
            with super()._translated():
                yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise Cancelled("the client was closed", grpc.StatusCode.CANCELLED) from error

    async def close(self) -> None:
        """Closes the connections and cancels every call in flight. After that, every call raises `Cancelled`."""
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
