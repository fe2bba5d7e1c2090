"""The client. `async_client` is the same over grpc.aio; only the calls themselves differ."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self, TypeAlias, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_protos.v1 import zfserve_pb2
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve import results
from zfserve.attempts import Attempts, Call
from zfserve.base_client import BaseClient
from zfserve.channel import ASK_THE_UNHEALTHY, Options, TlsOptions
from zfserve.errors import ZfserveError, translated
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
from zfserve.tracing import CLASSIFY, DESCRIBE, LIST, PROJECT, CallSpan, traced

STRONGEST = 9
"""How many maps `project` returns unless told."""

IN_FLIGHT = 16
"""How many photos `classify_many` has under way; enough to fill a server's batch while the next is read."""


class Client(BaseClient):
    """Calls a zfserve service. Safe to share between threads; close it, or use it in a `with`.

    Args:
        address: see `channel_target`. Calls go round robin over all the addresses it names or resolves to; a server
            that starts or stops, by its own health, is left out.
        tls: None for an unencrypted connection.
        tracer_provider: of OpenTelemetry, which makes each call a span and the service's work part of its trace; None
            for the application's global one, if it has any.
        token: shown with every call; without TLS only to this machine.
        priority: "bulk" lets interactive calls go first where the service is busy.
        client_id: who this is; clients share a busy service evenly, and those without an id by their address. A client
            that shows a token or a certificate is known by that.
        timeout_s: how long a call may take, retries included, unless the call says otherwise.
        max_message_bytes: the largest request and response.
        adaptive_throttling: keeps part of the calls back, raising `Overloaded` at once, while the service refuses most
            of them, so that it has its time for the others.

    Every call raises a `ZfserveError`. A call that met no server, or a full one, is first tried again up to three
    times, within its time.
    """

    def _open(self, target: str, options: Options, tls: TlsOptions | None) -> None:
        self._channel = _connect(target, options, tls)
        self._health_channel = _connect(target, [*options, ASK_THE_UNHEALTHY], tls)
        self._stub = VisionServiceStub(self._channel)

    def classify(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        features: bool = False,
        timeout_s: float | None = None,
    ) -> Classification:
        """The best classes for one photo.

        Args:
            image: a path, the bytes of a file, a Pillow image, uint8 (height, width, 3) RGB, or a reference, which only
                the model that gave it out takes.
            model: its name; None for the server's default, or for the one that gave out the reference.
            version: None for the newest that is ready.
            top_k: how many classes; None for the server's default of 5.
            features: whether to return the last hidden layer as well.
        """
        request = classify_request(image, top_k, features, self._max_message_bytes)
        request.model.MergeFrom(model_selector(model, version))
        throttle = self._throttle(CLASSIFY, request.model)
        with traced(CLASSIFY, self._tracer_provider) as trace, throttle.asking(), self._translated():
            metadata = (*self._metadata, *trace)
            response = self._stub.Classify(request, timeout=self._within(timeout_s), metadata=metadata)
        return results.classification(response)

    def classify_many(
        self,
        images: Iterable[ImageSource],
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        features: bool = False,
        timeout_s: float | None = None,
        in_flight: int = IN_FLIGHT,
    ) -> Generator[Classification | ZfserveError]:
        """One result for each photo, in the order given, with up to `in_flight` of them under way at once.

        A photo that fails yields its error in its place, so that one bad file does not end the others. One that is
        refused by a busy server, which says when to try again, is sent again then, within its time. Closing the
        generator cancels what is under way.
        """
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        selector = model_selector(model, version)
        under_way: deque[_Started] = deque()
        try:
            for image in images:
                if len(under_way) == in_flight:
                    yield _outcome(under_way.popleft())
                under_way.append(self._start(image, selector, top_k, features, self._within(timeout_s)))
            while under_way:
                yield _outcome(under_way.popleft())
        finally:
            for call in under_way:
                if not isinstance(call, ZfserveError):
                    call.cancel()

    def _start(
        self,
        image: ImageSource,
        selector: zfserve_pb2.ModelSelector,
        top_k: int | None,
        features: bool,
        timeout_s: float,
    ) -> "_Started":
        try:
            request = classify_request(image, top_k, features, self._max_message_bytes)
            request.model.MergeFrom(selector)
            return Attempts(partial(self._call, request), self._throttle(CLASSIFY, selector), timeout_s)
        except ZfserveError as error:
            return error

    def _call(self, request: zfserve_pb2.ClassifyRequest, timeout_s: float) -> Call:
        self._check_open()
        span = CallSpan(CLASSIFY, self._tracer_provider)
        metadata = (*self._metadata, *span.metadata)
        call = self._stub.Classify.future(request, timeout=timeout_s, metadata=metadata)
        call.add_done_callback(lambda done: span.end(cast("grpc.Call", done).code()))
        return call

    @contextmanager
    def _translated(self) -> Iterator[None]:
        self._check_open()
        with translated():
            yield

    def project(
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
    ) -> Generator[Projection]:
        """For each feature map, the pixels that drove it, as they arrive. Closing the generator stops the work.

        Args:
            image: as for `classify`; `Classification.image_reference` spares sending the photo again, to the one
                server that keeps it: behind round robin, send the photo.
            model: as for `classify`.
            version: as for `classify`.
            layer: a layer's name as `describe` gives it, such as "conv5".
            strongest: how many maps, those with the strongest single activation.
            maps: just these maps in this order, instead.
            for_class: the id or label of a class, or "" for the most probable one: the `strongest` maps are then those
                that add most to its score, and in each the unit that adds most.
            unit: "strongest", "whole" or a `Position`.
            format: "png" fills `Projection.png`, "float32" fills `Projection.pixels`.
        """
        selected = choose_maps(strongest, maps, for_class)
        request = project_request(image, layer, selected, unit, format, self._max_message_bytes)
        request.model.MergeFrom(model_selector(model, version))
        return self._projections(request, self._within(timeout_s))

    def _projections(self, request: zfserve_pb2.ProjectRequest, timeout_s: float) -> Generator[Projection]:
        throttle = self._throttle(PROJECT, request.model)
        with traced(PROJECT, self._tracer_provider) as trace, throttle.asking(), self._translated():
            call = self._stub.Project(request, timeout=timeout_s, metadata=(*self._metadata, *trace))
            try:
                for response in call:
                    yield results.projection(response)
            finally:
                call.cancel()

    def describe(
        self, *, model: str | None = None, version: str | None = None, timeout_s: float | None = None
    ) -> ModelDescription:
        """One version of a model: layers, classes, input, and figures measured at export."""
        request = zfserve_pb2.DescribeModelRequest(model=model_selector(model, version))
        with traced(DESCRIBE, self._tracer_provider) as trace, self._translated():
            metadata = (*self._metadata, *trace)
            response = self._stub.DescribeModel(request, timeout=self._within(timeout_s), metadata=metadata)
        return results.model_description(response)

    def list_models(self, *, timeout_s: float | None = None) -> tuple[ModelStatus, ...]:
        """Every version of every model that the server knows of; the default model first, and the newest of each."""
        with traced(LIST, self._tracer_provider) as trace, self._translated():
            response = self._stub.ListModels(
                zfserve_pb2.ListModelsRequest(),
                timeout=self._within(timeout_s),
                metadata=(*self._metadata, *trace),
            )
        return tuple(map(results.model_status, response.models))

    def is_serving(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """What the server's health says of one name: "" for the server, "zfserve.v1.VisionService/Project" for
        projections, and so on. A name it does not know raises `NotFound`."""
        request = health_pb2.HealthCheckRequest(service=service)
        with self._translated():
            answer = health_pb2_grpc.HealthStub(self._health_channel).Check(
                request, timeout=self._within(timeout_s), metadata=self._metadata
            )
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Ends the connection and cancels every call still under way. From then on every call raises `Cancelled`."""
        self._closed = True
        self._channel.close()
        self._health_channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _connect(target: str, options: Options, tls: TlsOptions | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, tls.credentials(), options)


_Started: TypeAlias = Attempts | ZfserveError


def _outcome(started: _Started) -> Classification | ZfserveError:
    return started if isinstance(started, ZfserveError) else started.outcome()
