"""Defines the methods of the async client for the experiments of Zeiler & Fergus. `AsyncClient` inherits them.

`study_methods` has the same methods for the sync client, and explains them.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from zfserve_protos.methods import ABLATE, ACTIVATIONS, OCCLUDE, TRANSFORM
from zfserve_protos.v1.zfserve_pb2 import AblateRequest, ActivationsRequest, OccludeRequest, TransformRequest

from zfserve.occlusion import MID_GREY, Fill, Occlusion, OcclusionUpdate
from zfserve.requests import LAST, STRONGEST, ImageSource, model_selector
from zfserve.streaming import AsyncStreamingClient
from zfserve.studies import (
    AblationStep,
    ActivationForm,
    Border,
    PhotoActivations,
    Replacement,
    Resampling,
    TransformKind,
    TransformStep,
)
from zfserve.study_replies import AblateReplies, ActivationsReplies, TransformReplies, occlusion_update
from zfserve.study_requests import (
    Groups,
    ablate_request,
    activations_request,
    occlude_request,
    transform_request,
    with_photo,
    with_photos,
    with_rules,
)

if TYPE_CHECKING:
    from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceAsyncStub


class AsyncStudyMethods(AsyncStreamingClient):
    """Has the methods of `AsyncClient` that stream the results of experiments."""

    _stub: "VisionServiceAsyncStub"

    def activations(
        self,
        images: Iterable[ImageSource],
        layers: str | Sequence[str],
        *,
        form: ActivationForm = "strongest",
        grid: tuple[int, int] | None = None,
        model: str | None = None,
        version: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[PhotoActivations]:
        """Yields what layers compute for photos, one result for each photo, in the order of the photos.

        See [`Client.activations`][zfserve.Client.activations] for arguments and errors. Errors are raised when the
        generator is read, never before. Closing the generator (`contextlib.aclosing`) stops the work on the server.
        """

        def build() -> ActivationsRequest:
            request = activations_request(layers, form, grid)
            return with_photos(request, images, model_selector(model, version), self._max_message_bytes)

        return self._results(ACTIVATIONS, self._stub.Activations, build, timeout_s, ActivationsReplies())

    def occlude(
        self,
        image: ImageSource,
        *,
        size: int | None = None,
        stride: int | None = None,
        fill: Fill = MID_GREY,
        class_name: str = "",
        layer: str = "",
        map: int | None = None,  # noqa: A002
        model: str | None = None,
        version: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[OcclusionUpdate]:
        """Yields what the network says while a square covers one place of the photo after the other.

        See [`Client.occlude`][zfserve.Client.occlude] for arguments and errors. Errors are raised when the
        generator is read, never before. Closing the generator (`contextlib.aclosing`) stops the work on the server.
        """

        def build() -> OccludeRequest:
            request = occlude_request(size, stride, fill, class_name, layer, map)
            return with_photo(request, image, model_selector(model, version), self._max_message_bytes)

        return self._results(OCCLUDE, self._stub.Occlude, build, timeout_s, occlusion_update)

    async def occlusion(
        self,
        image: ImageSource,
        *,
        size: int | None = None,
        stride: int | None = None,
        fill: Fill = MID_GREY,
        class_name: str = "",
        layer: str = "",
        map: int | None = None,  # noqa: A002
        model: str | None = None,
        version: str | None = None,
        timeout_s: float | None = None,
    ) -> Occlusion:
        """Returns what the network says while a square covers one place of the photo after the other, as grids.

        See [`Client.occlusion`][zfserve.Client.occlusion] for arguments and errors.
        """
        updates = self.occlude(
            image,
            size=size,
            stride=stride,
            fill=fill,
            class_name=class_name,
            layer=layer,
            map=map,
            model=model,
            version=version,
            timeout_s=timeout_s,
        )
        async with aclosing(updates):
            return Occlusion.from_updates([update async for update in updates])

    def ablate(
        self,
        image: ImageSource,
        layer: str = LAST,
        *,
        strongest: int = STRONGEST,
        groups: Groups | None = None,
        for_class: str | None = None,
        replacement: Replacement = "zero",
        model: str | None = None,
        version: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[AblationStep]:
        """Yields the probabilities of all classes while feature maps of a layer are replaced by a constant.

        See [`Client.ablate`][zfserve.Client.ablate] for arguments and errors. Errors are raised when the
        generator is read, never before. Closing the generator (`contextlib.aclosing`) stops the work on the server.
        """

        def build() -> AblateRequest:
            request = ablate_request(layer, strongest, groups, for_class, replacement)
            return with_photo(request, image, model_selector(model, version), self._max_message_bytes)

        return self._results(ABLATE, self._stub.Ablate, build, timeout_s, AblateReplies())

    def transform(
        self,
        image: ImageSource,
        kind: TransformKind,
        *,
        steps: Sequence[float] | None = None,
        class_name: str = "",
        low_layer: str = "",
        border: Border = "grey",
        resampling: Resampling = "bilinear",
        pictures: bool = False,
        model: str | None = None,
        version: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[TransformStep]:
        """Yields what the network says of the photo at each step of a transformation.

        See [`Client.transform`][zfserve.Client.transform] for arguments and errors. Errors are raised when the
        generator is read, never before. Closing the generator (`contextlib.aclosing`) stops the work on the server.
        """

        def build() -> TransformRequest:
            request = with_rules(transform_request(kind, steps, class_name, low_layer, pictures), border, resampling)
            return with_photo(request, image, model_selector(model, version), self._max_message_bytes)

        return self._results(TRANSFORM, self._stub.Transform, build, timeout_s, TransformReplies())
