"""Makes the two pictures of each tile: the projection of a unit, and the part of the photo that the unit sees.

Each picture is a file of the run. A run that was killed makes only those that are missing.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from zfserve.client import Client
from zfserve.model_description import InputSpec
from zfserve.results import Position, Projection

from zfserve_studies.atlas.patches import cut_patch
from zfserve_studies.atlas.question import AtlasQuestion, Photo
from zfserve_studies.atlas.scan import IN_FLIGHT
from zfserve_studies.atlas.strongest import Strongest, Unit
from zfserve_studies.patience import Patience
from zfserve_studies.run_folder import CannotContinue, RunFolder, require_same_model

TILES_FOLDER = "tiles"

CLIPPED_SHARE = 0.005
"""The share of the values of a projection that are clipped, as in the pictures of the worker."""

_FACTS = "zfserve"
"""The facts of a projection stand under this name in the text of its PNG file."""


@dataclass(frozen=True)
class Tile:
    """Describes one tile.

    Attributes:
        map: the map.
        rank: the place among the photos of the map, from 0.
        unit: the unit.
    """

    map: int
    rank: int
    unit: Unit

    @property
    def projection(self) -> str:
        """Returns the name of the file of the projection, below the folder of the run."""
        return f"{TILES_FOLDER}/map{self.map:05}-{self.rank + 1}-projection.png"

    @property
    def patch(self) -> str:
        """Returns the name of the file of the patch."""
        return f"{TILES_FOLDER}/map{self.map:05}-{self.rank + 1}-patch.png"


@dataclass(frozen=True)
class Wanted:
    """Says which pictures the tiles have.

    Attributes:
        projections: True for projections. Some networks and servers cannot make them.
        patches: True for patches.
        input: the input of the model.
    """

    projections: bool
    patches: bool
    input: InputSpec


@dataclass(frozen=True, eq=False)
class ProjectionPicture:
    """Holds a projection.

    Attributes:
        levels: float32 (height, width, 3), RGB, on a scale of its own, from -1 to 1.
        peak: the value, in the space of the normalised input, that is 1 on that scale. 0 if all values are 0.
        rule: the rule of the projection, such as "paper".
    """

    levels: npt.NDArray[np.float32]
    peak: float
    rule: str

    def on_scale(self, scale: float) -> Image.Image:
        """Returns the picture on a scale that several tiles share: mid-grey is 0, and larger values are clipped."""
        levels = np.clip(self.levels * (self.peak / scale), -1, 1) if scale > 0 else np.zeros_like(self.levels)
        return Image.fromarray(np.rint(128 + 127 * levels).astype(np.uint8))


def tiles_of(strongest: Strongest) -> Iterator[Tile]:
    """Yields the tiles of all maps in order."""
    for index in strongest.maps:
        for rank, unit in enumerate(strongest.units(index)):
            yield Tile(index, rank, unit)


def read_projection(run: RunFolder, tile: Tile) -> ProjectionPicture:
    """Returns the projection of a tile.

    Raises:
        CannotContinue: the file is damaged.
        OSError: the file cannot be read.
    """
    file = run.folder / tile.projection
    try:
        with Image.open(file) as picture:
            facts = json.loads(picture.info[_FACTS])
            levels = (np.asarray(picture.convert("RGB")).astype(np.float32) - 128) / np.float32(127)
    except (UnidentifiedImageError, ValueError, KeyError, SyntaxError) as error:
        raise CannotContinue(f"{file} is damaged; delete it, and give the same command again") from error
    return ProjectionPicture(levels, facts["peak"], facts["rule"])


def encode_projection(projection: Projection) -> bytes:
    """Returns a projection as a PNG file on its own scale, with that scale in its text."""
    assert projection.pixels is not None, "the call asked for float32"
    values = projection.pixels.to_numpy().transpose(1, 2, 0)
    strengths = np.sort(np.abs(values), axis=None)
    peak = float(strengths[-1 - int(CLIPPED_SHARE * len(strengths))]) or float(strengths[-1])
    levels = np.clip(values / peak, -1, 1) if peak else np.zeros_like(values)
    text = PngInfo()
    text.add_text(_FACTS, json.dumps({"peak": peak, "rule": projection.rule}))
    file = io.BytesIO()
    Image.fromarray(np.rint(128 + 127 * levels).astype(np.uint8)).save(file, "PNG", pnginfo=text)
    return file.getvalue()


class TileMaker:
    """Makes the pictures of tiles.

    Args:
        client: the client of the service. Several threads call it.
        photos: the folder of the photos.
        wanted: the pictures to make.
        patience: waits for a server that restarts.
    """

    def __init__(
        self, client: Client, question: AtlasQuestion, photos: Path, wanted: "Wanted", patience: Patience
    ) -> None:
        self._client = client
        self._question = question
        self._photos = photos
        self._wanted = wanted
        self._patience = patience

    def make(self, tiles: Sequence[Tile], run: RunFolder, progress: Callable[[int, int | None], None]) -> None:
        """Makes the pictures that are missing.

        Raises:
            CannotContinue: a photo or the model has changed.
            ZfserveError: the service failed.
            OSError: a file cannot be read or written.
        """
        (run.folder / TILES_FOLDER).mkdir(exist_ok=True)
        missing = [tile for tile in tiles if not self._is_there(run, tile)]
        done = len(tiles) - len(missing)
        threads = ThreadPoolExecutor(IN_FLIGHT)
        try:
            for _ in threads.map(lambda tile: self._make(tile, run), missing):
                done += 1
                progress(done, len(tiles))
        finally:
            threads.shutdown(cancel_futures=True)

    def _is_there(self, run: RunFolder, tile: Tile) -> bool:
        files = [
            *([tile.projection] if self._wanted.projections else []),
            *([tile.patch] if self._wanted.patches else []),
        ]
        return all((run.folder / file).exists() for file in files)

    def _make(self, tile: Tile, run: RunFolder) -> None:
        unit = tile.unit
        try:
            content, digest = Photo(unit.photo, self._photos / unit.photo).read()
        except OSError as error:
            raise CannotContinue(
                f"{self._photos / unit.photo} cannot be read: {error.strerror}; put it back, or start again"
            ) from error
        if digest != unit.digest:
            raise CannotContinue(
                f"{self._photos / unit.photo} has changed since it was read; put it back, "
                "or start again in another folder"
            )
        if self._wanted.projections:
            projection = self._patience.call(lambda: self._project(content, tile))
            require_same_model(self._question.model, projection.model)
            run.write(tile.projection, encode_projection(projection))
            patch = projection.patch_png
        else:
            patch = cut_patch(content, unit.row, unit.column, self._question.layer, self._wanted.input)
        if self._wanted.patches:
            run.write(tile.patch, patch)

    def _project(self, content: bytes, tile: Tile) -> Projection:
        (projection,) = self._client.project(
            content,
            self._question.layer.name,
            maps=[tile.map],
            unit=Position(tile.unit.row, tile.unit.column),
            format="float32",
            model=self._question.model.name,
            version=self._question.model.version,
        )
        return projection
