"""Defines the methods of the sync client for the experiments of Zeiler & Fergus (ECCV 2014). `Client` inherits them.

`async_study_methods` has the same methods over grpc.aio.
"""

from collections.abc import Generator, Iterable, Sequence

from zfserve_protos.methods import ABLATE, ACTIVATIONS, OCCLUDE, TRANSFORM
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve.occlusion import MID_GREY, Fill, Occlusion, OcclusionUpdate
from zfserve.requests import LAST, STRONGEST, ImageSource, model_selector
from zfserve.streaming import StreamingClient
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


class StudyMethods(StreamingClient):
    """Has the methods of `Client` that stream the results of experiments."""

    _stub: VisionServiceStub

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
    ) -> Generator[PhotoActivations]:
        """Yields what layers compute for photos, one result for each photo, in the order of the photos.

        Closing the generator stops the work on the server. Errors that the client finds in the arguments are raised at
        once. All other errors are raised when the generator is read.

        Args:
            images: the photos, 1 to 64, each in a form that `classify` takes.
            layers: the layers, 1 to 16: the name of a layer or of a stage, "last" as in `project`, or "features" for
                the activations that enter the last linear layer.
            form: "strongest" for the strongest unit of each map with its position, "maps" for all values, or "grid" for
                the means over the cells of a grid. An answer has at most 256 MiB of values.
            grid: the height and the width of the grid, from 1 to 64 and at most those of the maps. Only for "grid".
            model: the name of the model. None means the server's default model, or for a reference the model that
                returned it.
            version: the version of the model. None means the newest version that is ready.
            timeout_s: the timeout in seconds of the whole call. None means the client's timeout.

        Raises:
            InvalidInput: the photo cannot be read or decoded, an argument is wrong, or the answer would be too large.
            NotFound: there is no such model, version or layer, or a reference has expired.
            Overloaded: the server is too busy, or has too many calls of this kind in flight.
            Unavailable: no server answers, or it is starting or stopping.
            PreconditionFailed: the bundle is too old to read this layer. The message names the command that upgrades
                it.
            Unimplemented: the server is of a release without this method.
            DeadlineExceeded: the timeout is over.
            ZfserveError: the call failed in another way.
        """
        request = activations_request(layers, form, grid)
        with_photos(request, images, model_selector(model, version), self._max_message_bytes)
        return self._results(ACTIVATIONS, self._stub.Activations, request, timeout_s, ActivationsReplies())

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
    ) -> Generator[OcclusionUpdate]:
        """Yields what the network says while a square covers one place of the photo after the other.

        The first update has the plan and no places. A coarse grid of places comes next, then finer ones. The last
        update has the summary. This is figure 7 of the paper.

        Closing the generator stops the work on the server. Errors that the client finds in the arguments are raised at
        once. All other errors are raised when the generator is read.

        Args:
            image: the photo, in a form that `classify` takes.
            size: the side of the square, in pixels of the model's input, from 1 to its shorter side. None means a
                quarter of the shorter side.
            stride: the distance between neighbouring places, in pixels of the model's input, at least 1. None means a
                quarter of `size`. The last place of a row or column lies at the edge.
            fill: the fill of the square: a colour (red, green, blue), "mean" for the mean colour of the input, or a
                `Blur`. The default is mid-grey.
            class_name: the id or the label of the class. "" is the most probable class of the photo.
            layer: the layer of the map: the name of a layer or of a stage, or "last", as in `project`. "" is "last", or
                no layer and no map if the network has no layer that can be read.
            map: the feature map whose activity is summed, from 0. None means the map with the strongest unit.
            model: the name of the model. None means the server's default model, or for a reference the model that
                returned it.
            version: the version of the model. None means the newest version that is ready.
            timeout_s: the timeout in seconds of the whole call. None means the client's timeout.

        Raises:
            InvalidInput: the photo cannot be read or decoded, an argument is wrong, or the answer would be too large.
            NotFound: there is no such model, version, layer or class, or the reference has expired.
            OutOfRange: the layer has no such map.
            Overloaded: the server is too busy, or has too many calls of this kind in flight.
            Unavailable: no server answers, or it is starting or stopping.
            PreconditionFailed: the bundle is too old to read this layer. The message names the command that upgrades
                it.
            Unimplemented: the server is of a release without this method.
            DeadlineExceeded: the timeout is over.
            ZfserveError: the call failed in another way.
        """
        request = occlude_request(size, stride, fill, class_name, layer, map)
        with_photo(request, image, model_selector(model, version), self._max_message_bytes)
        return self._results(OCCLUDE, self._stub.Occlude, request, timeout_s, occlusion_update)

    def occlusion(
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

        It waits for all updates of `occlude`, which has the same arguments and errors.

        Args:
            image: the photo, in a form that `classify` takes.
            size: the side of the square, in pixels of the model's input, from 1 to its shorter side. None means a
                quarter of the shorter side.
            stride: the distance between neighbouring places, in pixels of the model's input, at least 1. None means a
                quarter of `size`. The last place of a row or column lies at the edge.
            fill: the fill of the square: a colour (red, green, blue), "mean" for the mean colour of the input, or a
                `Blur`. The default is mid-grey.
            class_name: the id or the label of the class. "" is the most probable class of the photo.
            layer: the layer of the map: the name of a layer or of a stage, or "last", as in `project`. "" is "last", or
                no layer and no map if the network has no layer that can be read.
            map: the feature map whose activity is summed, from 0. None means the map with the strongest unit.
            model: the name of the model. None means the server's default model, or for a reference the model that
                returned it.
            version: the version of the model. None means the newest version that is ready.
            timeout_s: the timeout in seconds of the whole call. None means the client's timeout.

        Raises:
            InvalidInput: the photo cannot be read or decoded, an argument is wrong, or the answer would be too large.
            NotFound: there is no such model, version, layer or class, or the reference has expired.
            OutOfRange: the layer has no such map.
            Overloaded: the server is too busy, or has too many calls of this kind in flight.
            Unavailable: no server answers, or it is starting or stopping.
            PreconditionFailed: the bundle is too old to read this layer. The message names the command that upgrades
                it.
            Unimplemented: the server is of a release without this method.
            DeadlineExceeded: the timeout is over.
            ZfserveError: the call failed in another way.
        """
        return Occlusion.from_updates(
            self.occlude(
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
        )

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
    ) -> Generator[AblationStep]:
        """Yields the probabilities of all classes while feature maps of a layer are replaced by a constant.

        There is one result for each group of maps: with this group replaced, and with this group and all before it.
        Closing the generator stops the work on the server. Errors that the client finds in the arguments are raised at
        once. All other errors are raised when the generator is read.

        Args:
            image: the photo, in a form that `classify` takes.
            layer: the layer of the maps: the name of a layer or of a stage, or "last", as in `project`.
            strongest: the number of maps, chosen by their strongest single activation, each a group of its own. The
                default is 9.
            groups: the groups of maps, in this order, each a map or several maps that are replaced together. Maps count
                from 0. `strongest` is then ignored.
            for_class: the id or the label of a class, or "" for the most probable class. The maps are then those that
                add most to the score of this class, each a group of its own, and `strongest` is their number. The
                server's worker chooses them.
            replacement: "zero", or "mean" for the mean of the map for this photo, or one value for each map of the
                layer.
            model: the name of the model. None means the server's default model, or for a reference the model that
                returned it.
            version: the version of the model. None means the newest version that is ready.
            timeout_s: the timeout in seconds of the whole call. None means the client's timeout.

        Raises:
            InvalidInput: the photo cannot be read or decoded, an argument is wrong, or the answer would be too large.
            NotFound: there is no such model, version, layer or class, or the reference has expired.
            OutOfRange: the layer has no such map, or has fewer maps than `strongest`.
            Overloaded: the server is too busy, or has too many calls of this kind in flight.
            Unavailable: no server answers, or it or the worker that chooses the maps is starting or stopping.
            PreconditionFailed: the bundle is too old to read this layer. The message names the command that upgrades
                it. Or the worker holds other weights than the server.
            Unimplemented: no maps of this layer can be chosen for a class, and the message names the node in the way.
                Or the server is of a release without this method.
            DeadlineExceeded: the timeout is over.
            ZfserveError: the call failed in another way.
        """
        request = ablate_request(layer, strongest, groups, for_class, replacement)
        with_photo(request, image, model_selector(model, version), self._max_message_bytes)
        return self._results(ABLATE, self._stub.Ablate, request, timeout_s, AblateReplies())

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
    ) -> Generator[TransformStep]:
        """Yields what the network says of the photo at each step of a transformation.

        This is figure 5 of the paper.

        Closing the generator stops the work on the server. Errors that the client finds in the arguments are raised at
        once. All other errors are raised when the generator is read.

        Args:
            image: the photo, in a form that `classify` takes.
            kind: what changes, such as "rotation". `TransformKind` lists all kinds.
            steps: the steps, 1 to 512 finite numbers, in the unit of the kind. None means the paper's range, or the
                range that `TransformKind` gives.
            class_name: the id or the label of the class. "" is the most probable class of the untouched photo.
            low_layer: the layer of the first distance: the name of a layer or of a stage, or "last". "" is the first
                layer of the network.
            border: "grey", "black", "edge" or "reflect" fills the places that the photo no longer covers.
            resampling: "bilinear", "nearest" or "bicubic" interpolates the pixels.
            pictures: True also returns each transformed input as a PNG file.
            model: the name of the model. None means the server's default model, or for a reference the model that
                returned it.
            version: the version of the model. None means the newest version that is ready.
            timeout_s: the timeout in seconds of the whole call. None means the client's timeout.

        Raises:
            InvalidInput: the photo cannot be read or decoded, an argument is wrong, or the answer would be too large.
            NotFound: there is no such model, version, layer or class, or the reference has expired.
            Overloaded: the server is too busy, or has too many calls of this kind in flight.
            Unavailable: no server answers, or it is starting or stopping.
            PreconditionFailed: the bundle is too old to read this layer. The message names the command that upgrades
                it.
            Unimplemented: the server is of a release without this method.
            DeadlineExceeded: the timeout is over.
            ZfserveError: the call failed in another way.
        """
        request = with_rules(transform_request(kind, steps, class_name, low_layer, pictures), border, resampling)
        with_photo(request, image, model_selector(model, version), self._max_message_bytes)
        return self._results(TRANSFORM, self._stub.Transform, request, timeout_s, TransformReplies())
