"""Defines the sync client. `async_client` has the same methods over grpc.aio."""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeAlias, cast

import grpc
from grpc.experimental import ChannelOptions
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_protos.channel_options import NO_HEALTH_CHECKING, Options
from zfserve_protos.methods import CLASSIFY, DESCRIBE_MODEL, EXPLAIN, LIST_MODELS, PROJECT
from zfserve_protos.v1 import zfserve_pb2
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve import replies
from zfserve.channel import TlsOptions
from zfserve.errors import ZfserveError
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
from zfserve.retrying_call import Call, RetryingCall
from zfserve.study_methods import StudyMethods
from zfserve.tracing import CallSpan

IN_FLIGHT = 16
"""`classify_many` has this many photos in flight by default. So a batch can fill while the next photo is read."""

_Started: TypeAlias = RetryingCall | ZfserveError


class Client(StudyMethods):
    """Calls a zfserve service. Threads can share a client. Close it at the end, or use it in a `with` statement.

    A client keeps its own connection to every server behind the address. If there are several, calls go to them in turn
    (round robin), and not to a server whose health says that it starts or stops.

    If no server answers, or the server is full or stopping, a call is sent again up to three times, within its timeout.

    Args:
        address: the address of the service: `HOST`, `HOST:PORT`, several `IP:PORT` separated by commas, `unix:PATH`, or
            any gRPC target. A name stands for all addresses that it resolves to. The default is localhost:8500, and the
            default port is 8500.
        tls: the options of an encrypted connection. None means an unencrypted connection.
        token: the token to show with every call. Without `tls` it is sent to this machine only.
        priority: "interactive" or "bulk". A busy service answers interactive calls before bulk calls.
        client_id: the identity of this client, up to 64 printable ASCII characters. A busy service divides its time
            equally among its clients. It knows a client without an id by its network address, and a client that shows a
            token or a certificate by that.
        timeout_s: the timeout of a call in seconds, retries included, unless the call has its own. The default is 30.
        max_message_bytes: the largest request and the largest answer, in bytes. The default is 64 MiB. The server has
            its own limit for requests.
        adaptive_throttling: True to send only some of the calls while the service refuses most of them. The other calls
            raise `Overloaded` at once, and the service has more time for those that are sent.
        tracer_provider: the OpenTelemetry provider that makes a span for each call. The service's spans become its
            children. None means the application's global provider, if there is one.

    Raises:
        ValueError: `address`, `token`, `priority`, `client_id` or `tls` cannot be used. The message says why.
        OSError: a file of `tls` cannot be read.
    """

    def _open(self, target: str, options: Options, tls: TlsOptions | None) -> None:
        self._channel = _connect(target, options, tls)
        self._health_channel = _connect(target, [*options, NO_HEALTH_CHECKING], tls)
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
        """Returns the most probable classes of one photo.

        Args:
            image: the photo. It is a path, the bytes of an image file, a Pillow image, an array, uint8 (height, width,
                3), RGB, or an `ImageReference`. Only the model that returned a reference accepts it.
            model: the name of the model. None means the server's default model, or for a reference the model that
                returned it.
            version: the version of the model. None means the newest version that is ready.
            top_k: the number of classes, from 1 to the model's number of classes. None means 5, or all classes if
                there are fewer.
            features: also return the activations that enter the last linear layer.
            timeout_s: the timeout in seconds, retries included. None means the client's timeout.

        Raises:
            InvalidInput: the photo cannot be read or decoded, or an argument is wrong.
            NotFound: there is no such model or version, or the reference has expired.
            Overloaded: the server is too busy.
            Unavailable: no server answers, or it is starting or stopping.
            DeadlineExceeded: the timeout is over.
            ZfserveError: the call failed in another way.
        """
        request = classify_request(image, top_k, features, self._max_message_bytes)
        request.model.MergeFrom(model_selector(model, version))
        with self._call(CLASSIFY, self._throttle(CLASSIFY, request.model)) as metadata:
            response = self._stub.Classify(request, timeout=self._timeout(timeout_s), metadata=metadata)
        return replies.classification(response)

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
        """Yields one result for each photo, in the order of the photos.

        A photo that fails does not raise. Its error is yielded in its place, so that one bad file does not stop the
        other photos. If a busy server refuses a photo and says when to try again, the photo is sent again at that time,
        within its timeout. Closing the generator cancels the calls in flight.

        Args:
            images: the photos, each in a form that `classify` takes. Only as many are read as are in flight.
            model: the name of the model. None means the server's default model.
            version: the version of the model. None means the newest version that is ready.
            top_k: the number of classes for each photo. None means 5, or all classes if there are fewer.
            features: also return the activations that enter the last linear layer.
            timeout_s: the timeout of each photo in seconds, retries included. None means the client's timeout.
            in_flight: the largest number of photos in flight at once, at least 1. The default is 16.

        Raises:
            ValueError: `in_flight` is below 1.
        """
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        selector = model_selector(model, version)
        pending: deque[_Started] = deque()
        try:
            for image in images:
                if len(pending) == in_flight:
                    yield _outcome(pending.popleft())
                pending.append(self._start(image, selector, top_k, features, self._timeout(timeout_s)))
            while pending:
                yield _outcome(pending.popleft())
        finally:
            for call in pending:
                if not isinstance(call, ZfserveError):
                    call.cancel()

    def _start(
        self,
        image: ImageSource,
        selector: zfserve_pb2.ModelSelector,
        top_k: int | None,
        features: bool,
        timeout_s: float,
    ) -> _Started:
        """Returns a call in flight, or the error of a photo that cannot be sent."""
        try:
            request = classify_request(image, top_k, features, self._max_message_bytes)
            request.model.MergeFrom(selector)
            return RetryingCall(partial(self._send, request), self._throttle(CLASSIFY, selector), timeout_s)
        except ZfserveError as error:
            return error

    def _send(self, request: zfserve_pb2.ClassifyRequest, timeout_s: float) -> Call:
        self._check_open()
        span = CallSpan(CLASSIFY, self._tracer_provider)
        metadata = (*self._metadata, *span.metadata)
        call = self._stub.Classify.future(request, timeout=timeout_s, metadata=metadata)
        call.add_done_callback(lambda done: span.end(cast("grpc.Call", done).code()))
        return call

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
    ) -> Generator[Projection]:
        """Yields the pixels that drove each chosen feature map, as soon as each is computed.

        Closing the generator stops the work on the server. Errors that the client finds in the arguments are raised at
        once. All other errors are raised when the generator is read.

        Args:
            image: the photo, in a form that `classify` takes. With `Classification.image_reference` the photo is not
                sent again. But only the server that returned the reference knows it. If the address has several
                servers, send the photo.
            layer: the name of a layer in `ModelDescription.layers`, such as "conv5", or of a stage, which stands for
                its last layer that is no pool. "last" is the last stage.
            model: the name of the model. None means the server's default model, or for a reference the model that
                returned it.
            version: the version of the model. None means the newest version that is ready.
            strongest: the number of maps, chosen by their strongest single activation. The strongest map comes first.
                The default is 9.
            maps: the indices of the maps to project, from 0, in this order. `strongest` is then ignored.
            for_class: the id or the label of a class, or "" for the most probable class. The maps are then those that
                add most to the score of this class, and `strongest` is their number.
            unit: "strongest" projects the unit with the highest activation of each map, or with `for_class` the unit
                that adds most to the score. "whole" projects all units together. A `Position` projects the unit there.
            format: "png" fills `Projection.png`, and "float32" fills `Projection.pixels`.
            timeout_s: the timeout in seconds of all projections together. None means the client's timeout.

        Raises:
            InvalidInput: the photo cannot be read or decoded, or an argument is wrong.
            NotFound: there is no such model, version, layer or class, or the reference has expired.
            OutOfRange: the layer has no such map or unit, or has fewer maps than `strongest`.
            Overloaded: the server is too busy.
            Unavailable: no server answers, or it or its worker is starting or stopping.
            PreconditionFailed: the worker holds other weights than the server.
            Unimplemented: the network cannot be projected. The message names the node in the way.
            DeadlineExceeded: the timeout is over.
            ZfserveError: the call failed in another way.
        """
        selected = choose_maps(strongest, maps, for_class)
        request = project_request(image, layer, selected, unit, format, self._max_message_bytes)
        request.model.MergeFrom(model_selector(model, version))
        return self._results(PROJECT, self._stub.Project, request, timeout_s, partial(replies.projection, layer=layer))

    def explain(
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

        Args:
            image: the photo, in a form that `classify` takes.
            layer: the layer whose units are looked at: the name of a layer or of a stage, or "last", as in `project`.
            class_name: the id or the label of the class. "" is the most probable class.
            method: "integrated-gradients" or "grad-cam".
            model: the name of the model. None means the server's default model, or for a reference the model that
                returned it.
            version: the version of the model. None means the newest version that is ready.
            timeout_s: the timeout in seconds, retries included. None means the client's timeout.

        Raises:
            InvalidInput: the photo cannot be read or decoded, or an argument is wrong.
            NotFound: there is no such model, version, layer or class, or the reference has expired.
            Overloaded: the server is too busy.
            Unavailable: no server answers, or it or its worker is starting or stopping.
            PreconditionFailed: the worker holds other weights than the server.
            Unimplemented: the network cannot be explained from this layer, and the message names the node in the way.
                Or the server is of a release without `Explain`.
            DeadlineExceeded: the timeout is over.
            ZfserveError: the call failed in another way.
        """
        request = explain_request(image, layer, class_name, method, self._max_message_bytes)
        request.model.MergeFrom(model_selector(model, version))
        with self._call(EXPLAIN, self._throttle(EXPLAIN, request.model)) as metadata:
            response = self._stub.Explain(request, timeout=self._timeout(timeout_s), metadata=metadata)
        return replies.explanation(response)

    def describe(
        self, *, model: str | None = None, version: str | None = None, timeout_s: float | None = None
    ) -> ModelDescription:
        """Returns the description of one version of a model: its input, layers, classes, engine and figures.

        Args:
            model: the name of the model. None means the server's default model.
            version: the version of the model. None means the newest version that is ready.
            timeout_s: the timeout in seconds, retries included. None means the client's timeout.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: no server answers, or the model is still loading.
            ZfserveError: the call failed in another way.
        """
        request = zfserve_pb2.DescribeModelRequest(model=model_selector(model, version))
        with self._call(DESCRIBE_MODEL) as metadata:
            response = self._stub.DescribeModel(request, timeout=self._timeout(timeout_s), metadata=metadata)
        return replies.model_description(response)

    def list_models(self, *, timeout_s: float | None = None) -> tuple[ModelStatus, ...]:
        """Returns the status of every version of every model that the server knows of.

        The default model comes first. The versions of a model are sorted, the newest first. The server also answers
        while it starts.

        Args:
            timeout_s: the timeout in seconds, retries included. None means the client's timeout.

        Raises:
            Unavailable: no server answers.
            ZfserveError: the call failed in another way.
        """
        with self._call(LIST_MODELS) as metadata:
            response = self._stub.ListModels(
                zfserve_pb2.ListModelsRequest(), timeout=self._timeout(timeout_s), metadata=metadata
            )
        return tuple(map(replies.model_status, response.models))

    def is_serving(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Returns True if the server's health check says that `service` is serving. A failed check is not repeated.

        Args:
            service: the name to ask for. "" is the whole server, and "zfserve.v1.VisionService/Project" is projections.
            timeout_s: the timeout in seconds. None means the client's timeout.

        Raises:
            NotFound: the server's health check does not know `service`.
            Unavailable: no server answers.
            ZfserveError: the call failed in another way.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        with self._translated():
            answer = health_pb2_grpc.HealthStub(self._health_channel).Check(
                request, timeout=self._timeout(timeout_s), metadata=self._metadata
            )
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Closes the connections and cancels every call in flight. After that, every call raises `Cancelled`."""
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
    # Without this option grpcio 1.85 (and at least from 1.76 on) never ends a stream whose server refuses the first
    # attempt and is gone at the next one, not even at its deadline. The caller then reads
    # a stream itself, and needs no other thread.
    options = [*options, (ChannelOptions.SingleThreadedUnaryStream, 1)]
    if tls is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, tls.credentials(), options)


def _outcome(started: _Started) -> Classification | ZfserveError:
    return started if isinstance(started, ZfserveError) else started.outcome()
