"""Reads features of photos through the service, and keeps them on disk, so that a run that was killed continues."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from zfserve.client import Client
from zfserve.errors import InvalidInput
from zfserve.model_description import ModelDescription
from zfserve.studies import PhotoActivations

from zfserve_studies.patience import Patience
from zfserve_studies.run_folder import require_same_model, write_atomically
from zfserve_studies.unreadable import unreadable

FEATURES = "features"

BATCH = 16
"""One call has this many photos."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReadLayer:
    """Names a layer and how it is read.

    Attributes:
        name: the layer's own name, or "features".
        grid: the height and the width of the grid to which its maps are pooled. None for "features".
    """

    name: str
    grid: tuple[int, int] | None

    @property
    def folder(self) -> str:
        """Returns the name of the layer's folder. A layer's name may have slashes, so it is a digest."""
        return hashlib.sha256(f"{self.name}\0{self.grid}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FeatureStore:
    """Reads features of photos.

    A file in the cache is named by the network's fingerprint, the engine and its precision, the layer and the digest of
    the photo. So photos may move, and another network never finds these files.

    Attributes:
        client: calls the service.
        model: the model, as the service described it at the start.
        cache: the folder of the features.
        patience: waits while the server restarts.
        unreadable: gets the server's sentence for each photo that cannot be read.
    """

    client: Client
    model: ModelDescription
    cache: Path
    patience: Patience
    unreadable: dict[Path, str] = field(default_factory=dict)

    def layers(self, photos: Sequence[Path], names: Sequence[str], grid: int) -> list[ReadLayer]:
        """Returns the layers that the names mean. The server says so for the first photo that can be read.

        Args:
            photos: the photos, at least one.
            names: layers, stages, "last" or "features".
            grid: the side of the grid. Layers with smaller maps have a smaller grid.

        Raises:
            ZfserveError: the call failed, for example because there is no such layer.
        """
        answer = self._first(photos, names)
        sizes = {layer.name: (min(grid, layer.height), min(grid, layer.width)) for layer in self.model.layers}
        return [ReadLayer(name, None if name == FEATURES else sizes.get(name, (1, 1))) for name in answer.layers]

    def _first(self, photos: Sequence[Path], names: Sequence[str]) -> PhotoActivations:
        for photo in photos[:-1]:
            try:
                return self._ask([photo], names, None)[0]
            except InvalidInput as error:
                if not unreadable(error):
                    raise
        return self._ask([photos[-1]], names, None)[0]

    def fill(
        self, photos: Sequence[Path], layers: Sequence[ReadLayer], progress: Callable[[int, int | None], None]
    ) -> dict[Path, str]:
        """Reads what the cache lacks. Returns the digest of each photo that could be read.

        Args:
            photos: the photos.
            layers: the layers.
            progress: gets the number of photos that are done, and of all.

        Raises:
            ZfserveError: a call failed in another way than that a photo cannot be read.
            CannotContinue: the server holds another model now.
            OSError: a photo or the cache cannot be read or written.
        """
        digests = {photo: hashlib.sha256(photo.read_bytes()).hexdigest() for photo in photos}
        missing = [photo for photo in photos if not all(self._file(layer, digests[photo]).exists() for layer in layers)]
        done = len(photos) - len(missing)
        progress(done, len(photos))
        for layer in layers:
            self._folder(layer).mkdir(parents=True, exist_ok=True)
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            self._read(batch, layers, digests)
            progress(done + start + len(batch), len(photos))
        return {photo: digest for photo, digest in digests.items() if photo not in self.unreadable}

    def load(self, layer: ReadLayer, digests: Sequence[str]) -> Matrix:
        """Returns the features of a layer, float32 (N, D), a row for each photo. `fill` has read them."""
        return np.stack([np.frombuffer(self._file(layer, digest).read_bytes(), "<f4") for digest in digests])

    def _folder(self, layer: ReadLayer) -> Path:
        engine = f"{self.model.model.fingerprint[:32]}-{self.model.engine.name}-{self.model.engine.precision}"
        return self.cache / engine / layer.folder

    def _file(self, layer: ReadLayer, digest: str) -> Path:
        return self._folder(layer) / digest

    def _read(self, batch: Sequence[Path], layers: Sequence[ReadLayer], digests: dict[Path, str]) -> None:
        """Reads a batch. If a photo of it cannot be decoded, each of its photos is asked for alone."""
        for grid in dict.fromkeys(layer.grid for layer in layers):
            same = [layer for layer in layers if layer.grid == grid]
            readable = [photo for photo in batch if photo not in self.unreadable]
            try:
                answers = dict(zip(readable, self._ask(readable, [each.name for each in same], grid), strict=True))
            except InvalidInput:
                answers = self._one_by_one(readable, [each.name for each in same], grid)
            for photo, answer in answers.items():
                for layer in same:
                    write_atomically(self._file(layer, digests[photo]), answer.layers[layer.name].data)

    def _one_by_one(
        self, photos: Sequence[Path], names: Sequence[str], grid: tuple[int, int] | None
    ) -> dict[Path, PhotoActivations]:
        """Returns the answers of the photos that can be read. Raises InvalidInput if an argument is wrong."""
        answers = {}
        for photo in photos:
            try:
                (answers[photo],) = self._ask([photo], names, grid)
            except InvalidInput as error:
                if not unreadable(error):
                    raise
                self.unreadable[photo] = error.message
        return answers

    def _ask(
        self, photos: Sequence[Path], names: Sequence[str], grid: tuple[int, int] | None
    ) -> list[PhotoActivations]:
        if not photos:
            return []
        answers = self.patience.call(partial(self._call, photos, names, grid))
        require_same_model(self.model.model, answers[0].model)
        return answers

    def _call(
        self, photos: Sequence[Path], names: Sequence[str], grid: tuple[int, int] | None
    ) -> list[PhotoActivations]:
        identity = self.model.model
        return [
            *self.client.activations(
                photos,
                names,
                form="strongest" if grid is None else "grid",
                grid=grid,
                model=identity.name,
                version=identity.version,
            )
        ]
