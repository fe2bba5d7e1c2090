"""Writes projections to disk: two pictures for each projection, and one contact sheet for all."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from zfserve.results import Projection
from zfserve_photos.contact_sheet import Tile, contact_sheet

from zfserve_cli.picture_files import file_name_part, saving, write_picture
from zfserve_cli.short_number import short_number

COLUMNS = 3
"""A row of a contact sheet has this many projections."""


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


def save_projection(projection: Projection, folder: Path | None) -> SavedProjection:
    """Writes the projection and its patch to `folder`, as `LAYER-RANK-mapMAP.png` and `LAYER-RANK-mapMAP-patch.png`.

    Args:
        projection: the projection. It is not saved if it has no PNG.
        folder: the folder to write to. None writes nothing.

    Raises:
        NotSaved: a picture cannot be written.
    """
    if folder is None or projection.png is None:
        return SavedProjection(projection, None, None)
    stem = f"{file_name_part(projection.layer)}-{projection.rank + 1:02}-map{projection.map:04}"
    picture, patch = folder / f"{stem}.png", folder / f"{stem}-patch.png"
    with saving():
        picture.write_bytes(projection.png)
        patch.write_bytes(projection.patch_png)
    return SavedProjection(projection, picture, patch)


def save_sheet(projections: Sequence[Projection], title: str, file: Path) -> None:
    """Writes a contact sheet that shows each projection beside the part of the photo that caused it.

    Raises:
        NotSaved: the sheet cannot be written.
    """
    tiles = [projection_tile(projection) for projection in projections if projection.png is not None]
    write_picture(contact_sheet(tiles, COLUMNS, title), file)


def projection_tile(projection: Projection) -> Tile:
    """Returns a projection beside its part of the photo, above the number of the map and what it adds.

    Args:
        projection: the projection. It has a PNG.
    """
    pictures = _picture(projection.png or b""), _picture(projection.patch_png)
    return Tile(pictures, f"map {projection.map} · {_strength(projection)}")


def _strength(projection: Projection) -> str:
    if projection.attribution is None:
        return f"activation {short_number(projection.activation)}"
    return f"adds {short_number(projection.attribution, 3, '+')}"


def _picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")
