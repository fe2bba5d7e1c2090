"""Asks the service for the activations of photos with and without their parts."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image
from zfserve.client import Client
from zfserve.model_description import ModelDescription
from zfserve.results import Box
from zfserve.studies import Computation, PhotoActivations

from zfserve_studies.correspondence.measure import Change, SignChange, sign_change
from zfserve_studies.correspondence.parts import PhotoParts, masked
from zfserve_studies.patience import Patience
from zfserve_studies.run_folder import require_same_model

RANDOM = "random"
"""The name of the control."""


@dataclass(frozen=True)
class Correspondence:
    """Holds table 1 for one network.

    Attributes:
        changes: for each layer, by its own name, the sign change of each part and of the control (`RANDOM`).
        computation: how the service computed the activations.
    """

    changes: dict[str, dict[str, SignChange]]
    computation: Computation


@dataclass(frozen=True)
class CorrespondenceStudy:
    """Masks parts of photos and compares what changes.

    Attributes:
        client: calls the service.
        model: the model, as the service described it at the start.
        layers: the layers, as the user named them.
        patience: waits while the server restarts.
    """

    client: Client
    model: ModelDescription
    layers: Sequence[str]
    patience: Patience

    def measure(
        self,
        photos: Sequence[Image.Image],
        parts: Sequence[PhotoParts],
        controls: Sequence[Sequence[Box]],
        progress: Callable[[int, int | None], None],
    ) -> Correspondence:
        """Returns the sign changes of all parts and of the control.

        Args:
            photos: the upright photos, mode RGB, at least two.
            parts: the parts of each photo, with the same names in the same order.
            controls: the random boxes of each photo, as many for each. There may be none.
            progress: gets the number of versions of photos that were read, and of all.

        Raises:
            ZfserveError: a call failed.
            CannotContinue: the server holds another model now.
        """
        names = [*parts[0].parts]
        total, done = len(photos) * (1 + len(names) + len(controls[0])), 0
        changes: list[list[dict[str, Change]]] = []  # by photo, then by box, then by layer
        for photo, each, boxes in zip(photos, parts, controls, strict=True):
            whole = self._read(photo)
            row = []
            for box in [*each.parts.values(), *boxes]:
                done += 1
                progress(done, total)
                without = self._read(masked(photo, box))
                row.append({layer: _vector(whole, layer) - _vector(without, layer) for layer in whole.layers})
            done += 1
            progress(done, total)
            changes.append(row)
        layers = {}
        for layer in whole.layers:
            draws = [[row[at][layer] for row in changes] for at in range(len(names) + len(controls[0]))]
            layers[layer] = {name: sign_change([draws[at]]) for at, name in enumerate(names)}
            if len(draws) > len(names):
                layers[layer][RANDOM] = sign_change(draws[len(names) :])
        return Correspondence(layers, whole.computation)

    def _read(self, photo: Image.Image) -> PhotoActivations:
        data = io.BytesIO()
        # PNG keeps every pixel: a photo and its masked version differ in the box only, as JPEG would not allow.
        photo.save(data, "PNG", compress_level=1)
        answer = self.patience.call(partial(self._call, data.getvalue()))
        require_same_model(self.model.model, answer.model)
        return answer

    def _call(self, png: bytes) -> PhotoActivations:
        identity = self.model.model
        stream = self.client.activations([png], self.layers, form="maps", model=identity.name, version=identity.version)
        (answer,) = [*stream]
        return answer


def _vector(answer: PhotoActivations, layer: str) -> Change:
    vector: Change = np.asarray(answer.layers[layer].to_numpy(), dtype=np.float32).ravel()
    return vector
