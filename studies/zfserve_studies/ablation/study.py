"""Asks the service for ablations of many photos. Each photo's answer is kept, so that a run continues."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from zfserve.client import Client
from zfserve.errors import InvalidInput
from zfserve.model_description import ModelDescription
from zfserve.studies import AblationStep, LayerActivations, PhotoActivations, Replacement

from zfserve_studies.ablation.effects import PhotoAnswer
from zfserve_studies.ablation.groups import Groups
from zfserve_studies.patience import Patience
from zfserve_studies.run_folder import RunFolder, json_bytes, require_same_model
from zfserve_studies.unreadable import unreadable

MOST_GROUPS = 1024
"""One call takes this many groups."""

MEANS_FILE = "means.json"


@dataclass(frozen=True)
class AblationStudy:
    """Replaces maps of one layer in many photos.

    Attributes:
        client: calls the service.
        model: the model, as the service described it at the start.
        layer: the layer.
        patience: waits while the server restarts.
    """

    client: Client
    model: ModelDescription
    layer: str
    patience: Patience

    def read_layer(self, photo: Path) -> LayerActivations:
        """Returns the mean of each map for a photo, under the layer's own name: (maps, 1, 1).

        Raises:
            ZfserveError: the call failed, for example because there is no such layer.
            CannotContinue: the server holds another model now.
        """
        answer = self.patience.call(partial(self._activations, photo))
        require_same_model(self.model.model, answer.model)
        (layer,) = answer.layers.values()
        return layer

    def find_layer(self, photos: Sequence[Path]) -> LayerActivations:
        """Returns what `read_layer` returns for the first photo that can be read.

        Raises:
            ZfserveError: a call failed in another way, or no photo can be read.
            CannotContinue: the server holds another model now.
        """
        for photo in photos[:-1]:
            try:
                return self.read_layer(photo)
            except InvalidInput as error:
                if not unreadable(error):
                    raise
        return self.read_layer(photos[-1])

    def means(self, run: RunFolder, photos: Sequence[Path], progress: Callable[[int, int | None], None]) -> list[float]:
        """Returns the mean of each map over all units and photos. A photo that cannot be read is left out.

        Raises:
            ZfserveError: a call failed in another way, or no photo can be read.
            OSError: the run cannot be read or written.
        """
        if (kept := run.read(MEANS_FILE)) is not None:
            return [float(each) for each in json.loads(kept)]
        found = []
        for at, photo in enumerate(photos):
            progress(at, len(photos))
            try:
                found.append(self.read_layer(photo).to_numpy().ravel())
            except InvalidInput as error:
                if not unreadable(error) or (at == len(photos) - 1 and not found):
                    raise
        means = [float(each) for each in np.asarray(np.mean(np.stack(found), axis=0, dtype=np.float64))]
        run.write(MEANS_FILE, json_bytes(means))
        return means

    def answer(
        self, run: RunFolder, name: str, photo: Path, label: tuple[int, int], groups: Groups, replacement: Replacement
    ) -> PhotoAnswer:
        """Returns the answers for one photo, from the run if they are there.

        Args:
            run: the run.
            name: the name of the photo's file in the run.
            photo: the photo.
            label: the index of the photo's folder, and that of the model's output for this class.
            groups: the groups of maps.
            replacement: what stands in the place of the maps.

        Raises:
            InvalidInput: the photo cannot be read.
            ZfserveError: the call failed in another way.
            OSError: the run cannot be read or written.
        """
        if (kept := run.read(name)) is not None:
            document = json.loads(kept)
            return PhotoAnswer(document["label"], tuple(document["right"]), tuple(document["probabilities"]))
        rows: list[tuple[float, ...]] = []
        for start in range(0, len(groups), MOST_GROUPS):
            part = groups[start : start + MOST_GROUPS]
            steps = self.patience.call(partial(self._ablate, photo, part, replacement))
            require_same_model(self.model.model, steps[0].model)
            rows += [*([] if rows else [steps[0].untouched]), *(step.alone for step in steps)]
        folder, output = label
        right = tuple(int(np.argmax(row)) == output for row in rows)
        answer = PhotoAnswer(folder, right, tuple(float(row[output]) for row in rows))
        run.write(name, json_bytes(asdict(answer)))
        return answer

    def _activations(self, photo: Path) -> PhotoActivations:
        identity = self.model.model
        stream = self.client.activations(
            [photo], self.layer, form="grid", grid=(1, 1), model=identity.name, version=identity.version
        )
        (answer,) = [*stream]
        return answer

    def _ablate(self, photo: Path, groups: Groups, replacement: Replacement) -> list[AblationStep]:
        identity = self.model.model
        return [
            *self.client.ablate(
                photo,
                self.layer,
                groups=groups,
                replacement=replacement,
                model=identity.name,
                version=identity.version,
            )
        ]
