"""Projections on disk: a picture and its patch for each, and one contact sheet of all."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from zfserve.results import Projection
from zfserve_photos.contact_sheet import Tile, contact_sheet

COLUMNS = 3


@dataclass(frozen=True)
class SavedProjection:
    """A projection and where it lies: None where it was not saved."""

    projection: Projection
    picture: Path | None
    patch: Path | None


def save_projection(projection: Projection, layer: str, folder: Path | None) -> SavedProjection:
    """Write the projection's PNG and its patch as `LAYER-RANK-mapMAP.png` and `...-patch.png`."""
    if folder is None or projection.png is None:
        return SavedProjection(projection, None, None)
    stem = f"{layer}-{projection.rank + 1:02}-map{projection.map:04}"
    picture, patch = folder / f"{stem}.png", folder / f"{stem}-patch.png"
    picture.write_bytes(projection.png)
    patch.write_bytes(projection.patch_png)
    return SavedProjection(projection, picture, patch)


def save_sheet(projections: Sequence[Projection], title: str, file: Path) -> None:
    """Write a contact sheet: each projection beside the part of the photo that caused it."""
    tiles = [
        Tile(
            (_picture(projection.png), _picture(projection.patch_png)),
            f"map {projection.map} · {_weight(projection)}",
        )
        for projection in projections
        if projection.png is not None
    ]
    contact_sheet(tiles, COLUMNS, title).save(file)


def _weight(projection: Projection) -> str:
    if projection.for_class is None:
        return f"activation {projection.activation:.2f}"
    return f"adds {projection.attribution:+.3f}"


def _picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")
