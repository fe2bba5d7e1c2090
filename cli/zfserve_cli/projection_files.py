"""Writes projections to disk: two pictures for each projection, and one contact sheet for all."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from zfserve.results import Projection
from zfserve_photos.contact_sheet import Tile, contact_sheet

COLUMNS = 3
"""A row of a contact sheet has this many projections."""


class NotSaved(Exception):
    """A picture cannot be written. The message says which one and why."""


@dataclass(frozen=True)
class SavedProjection:
    """Holds a projection and the names of its files.

    Attributes:
        projection: the projection.
        picture: the file of the projection. None if it was not saved.
        patch: the file of the part of the photo that it explains. None if it was not saved.
    """

    projection: Projection
    picture: Path | None
    patch: Path | None


def save_projection(projection: Projection, layer: str, folder: Path | None) -> SavedProjection:
    """Writes the projection and its patch to `folder`, as `LAYER-RANK-mapMAP.png` and `LAYER-RANK-mapMAP-patch.png`.

    Args:
        projection: the projection. It is not saved if it has no PNG.
        layer: the name of its layer.
        folder: the folder to write to. None writes nothing.

    Raises:
        NotSaved: a picture cannot be written.
    """
    if folder is None or projection.png is None:
        return SavedProjection(projection, None, None)
    stem = f"{layer}-{projection.rank + 1:02}-map{projection.map:04}"
    picture, patch = folder / f"{stem}.png", folder / f"{stem}-patch.png"
    with _saving():
        picture.write_bytes(projection.png)
        patch.write_bytes(projection.patch_png)
    return SavedProjection(projection, picture, patch)


def save_sheet(projections: Sequence[Projection], title: str, file: Path) -> None:
    """Writes a contact sheet that shows each projection beside the part of the photo that caused it.

    Raises:
        NotSaved: the sheet cannot be written.
    """
    tiles = [
        Tile(
            (_picture(projection.png), _picture(projection.patch_png)),
            f"map {projection.map} · {_strength(projection)}",
        )
        for projection in projections
        if projection.png is not None
    ]
    with _saving():
        contact_sheet(tiles, COLUMNS, title).save(file)


@contextmanager
def _saving() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise NotSaved(f"a picture cannot be written{where}: {error.strerror or error}") from error


def _strength(projection: Projection) -> str:
    if projection.attribution is None:
        return f"activation {projection.activation:.2f}"
    return f"adds {projection.attribution:+.3f}"


def _picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")
