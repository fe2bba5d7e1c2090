"""Asks the service for everything that figure 7 shows of one photo."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from zfserve.client import Client
from zfserve.errors import OutOfRange, PermissionDenied, PreconditionFailed, Unavailable, Unimplemented
from zfserve.model_description import ModelDescription
from zfserve.occlusion import Fill, Occlusion, OcclusionPlan, OcclusionUpdate
from zfserve.results import Box, Projection

from zfserve_studies.patience import Patience
from zfserve_studies.run_folder import require_same_model

_NO_PROJECTION = (OutOfRange, PermissionDenied, PreconditionFailed, Unavailable, Unimplemented)
"""These errors say that this network, this layer, this caller or this server has no projection. The rest is shown."""


@dataclass(frozen=True)
class OcclusionOptions:
    """Holds what the user chose. Each attribute is the argument of `Client.occlude` with the same name."""

    size: int | None
    stride: int | None
    fill: Fill
    class_name: str
    layer: str
    map: int | None


@dataclass(frozen=True)
class Reference:
    """Holds the projection of a map from another photo, where that map fires strongly.

    Attributes:
        photo: the name of the photo.
        activation: the activation of the projected unit.
        projection: the projection, mode RGB.
    """

    photo: str
    activation: float
    projection: Image.Image


FindReferences = Callable[[Path, OcclusionPlan], tuple[Reference, ...]]
"""Finds the projections of the plan's map from other photos than this one, the strongest first. There may be none."""


@dataclass(frozen=True)
class OccludedPhoto:
    """Holds what the service said of one photo.

    Attributes:
        name: the name of the photo, for titles.
        options: what the user chose.
        occlusion: the grids.
        labels: the labels of all classes, by their index.
        input_size: the height and the width of the model's input, in pixels.
        projection: the projection of the map's strongest unit. None if there is none.
        note: a sentence that says why there is no projection, or "".
        references: the same map's projections from other photos. There may be none.
    """

    name: str
    options: OcclusionOptions
    occlusion: Occlusion
    labels: tuple[str, ...]
    input_size: tuple[int, int]
    projection: Projection | None
    note: str
    references: tuple[Reference, ...]

    def seen(self, photo: Image.Image) -> Box:
        """Returns the region of the upright photo that the model's input covers. Without one it is the whole photo."""
        return self.occlusion.plan.source_box or Box(0, 0, photo.width, photo.height)

    def counted_labels(self) -> list[tuple[int, str, int]]:
        """Returns index, label and number of places of each most probable class, the most frequent first."""
        counts: dict[int, int] = {}
        for row in self.occlusion.best_classes:
            for index in row:
                counts[index] = counts.get(index, 0) + 1
        return [
            (index, self.labels[index], counts[index]) for index in sorted(counts, key=lambda at: (-counts[at], at))
        ]


@dataclass(frozen=True)
class OcclusionStudy:
    """Occludes photos with the same options and the same model.

    Attributes:
        client: calls the service.
        model: the model, as the service described it at the start.
        options: what the user chose.
        patience: waits while the server restarts.
        find_references: finds projections from other photos. None shows none.
    """

    client: Client
    model: ModelDescription
    options: OcclusionOptions
    patience: Patience
    find_references: FindReferences | None = None

    def occlude(self, photo: Path, progress: Callable[[int, int | None], None]) -> OccludedPhoto:
        """Occludes one photo, and projects the map. If the server restarts, the photo is begun again.

        Args:
            photo: the photo.
            progress: gets the number of places that are known, and of all.

        Raises:
            ZfserveError: the call failed.
            CannotContinue: the server holds another model now.
        """
        occlusion = self.patience.call(partial(self._occlusion, photo, progress))
        require_same_model(self.model.model, occlusion.plan.model)
        projection, note = self._projection(photo, occlusion.plan)
        find = self.find_references
        return OccludedPhoto(
            name=photo.name,
            options=self.options,
            occlusion=occlusion,
            labels=tuple(each.label for each in self.model.classes),
            input_size=(self.model.input.height, self.model.input.width),
            projection=projection,
            note=note,
            references=find(photo, occlusion.plan) if find is not None and occlusion.plan.map is not None else (),
        )

    def _occlusion(self, photo: Path, progress: Callable[[int, int | None], None]) -> Occlusion:
        options, identity = self.options, self.model.model
        updates = self.client.occlude(
            photo,
            size=options.size,
            stride=options.stride,
            fill=options.fill,
            class_name=options.class_name,
            layer=options.layer,
            map=options.map,
            model=identity.name,
            version=identity.version,
        )

        def shown() -> Iterator[OcclusionUpdate]:
            for update in updates:
                progress(update.done_places, update.total_places)
                yield update

        return Occlusion.from_updates(shown())

    def _projection(self, photo: Path, plan: OcclusionPlan) -> tuple[Projection | None, str]:
        """Returns the projection of the map's strongest unit, or None and a sentence that says why there is none."""
        if plan.map is None or plan.unit is None:
            return None, "no layer of this network can be read"
        project = partial(
            self.client.project,
            photo,
            plan.layer,
            maps=[plan.map],
            unit=plan.unit,  # worker and server compute in other precisions, and might choose other units
            model=plan.model.name,
            version=plan.model.version,
        )
        try:
            return self.patience.call(lambda: next(iter([*project()]))), ""
        except _NO_PROJECTION as error:
            return None, error.message


def picture(png: bytes) -> Image.Image:
    """Returns the picture of a PNG file, mode RGB."""
    return Image.open(io.BytesIO(png)).convert("RGB")
