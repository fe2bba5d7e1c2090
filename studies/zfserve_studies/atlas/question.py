"""Defines what an atlas asks: which photos, which layer and maps, and how photos are ranked."""

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zfserve.model_description import Layer, ModelDescription
from zfserve.results import ModelIdentity
from zfserve_photos.files import list_photo_files

from zfserve_studies.run_folder import CannotContinue, RunPlan

BATCH_PHOTOS = 16
"""A request has at most this many photos. Batches never depend on where a run was killed."""

BATCH_BYTES = 12 * 2**20
"""The photos of a request have at most this many bytes, or there is one photo. A server takes 17 MiB by default."""


@dataclass(frozen=True)
class Photo:
    """Names a photo.

    Attributes:
        name: the path below the folder of photos, with "/".
        file: the file.
    """

    name: str
    file: Path

    def read(self) -> tuple[bytes, str]:
        """Returns the content and its SHA-256 in hexadecimal digits.

        Raises:
            OSError: the file cannot be read.
        """
        content = self.file.read_bytes()
        return content, hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class AtlasQuestion:
    """Says what an atlas shows.

    Attributes:
        model: the model.
        layer: the layer.
        maps: the indices of the maps.
        for_class: the class for which photos are ranked, by id or label. None ranks them by activation.
        class_maps: how many maps of each photo are asked for `for_class`.
        shard: the number of the shard from 0, and the number of shards. None is a run over all photos.
    """

    model: ModelIdentity
    layer: Layer
    maps: tuple[int, ...]
    for_class: str | None = None
    class_maps: int = 0
    shard: tuple[int, int] | None = None

    def plan(self, photos: str) -> RunPlan:
        """Returns the plan of the run. `photos` is the digest of all photos, also of those of other shards."""
        options: dict[str, Any] = {
            "layer": self.layer.name,
            "maps": list(self.maps),
            "for_class": self.for_class,
            "class_maps": self.class_maps,
            "batch": [BATCH_PHOTOS, BATCH_BYTES],
            "shard": None if self.shard is None else list(self.shard),
        }
        return RunPlan("atlas", self.model, photos, options)


def find_photos(folder: Path) -> list[Photo]:
    """Returns the photos of a folder at any depth, sorted by name, so that the order is the same on each machine.

    Raises:
        CannotContinue: there are none.
    """
    photos = [Photo(file.relative_to(folder).as_posix(), file) for file in list_photo_files(folder)]
    if not photos:
        raise CannotContinue(f"{folder} has no photos; name another folder with --images")
    return sorted(photos, key=lambda photo: photo.name)


def batches(photos: Sequence[Photo], size_of: Callable[[Photo], int]) -> list[tuple[Photo, ...]]:
    """Returns the photos in batches of at most `BATCH_PHOTOS` and `BATCH_BYTES`.

    Raises:
        OSError: a photo is gone.
    """
    made: list[tuple[Photo, ...]] = []
    batch: list[Photo] = []
    size = 0
    for photo in photos:
        photo_bytes = size_of(photo)
        if batch and (len(batch) == BATCH_PHOTOS or size + photo_bytes > BATCH_BYTES):
            made.append(tuple(batch))
            batch, size = [], 0
        batch.append(photo)
        size += photo_bytes
    return [*made, tuple(batch)] if batch else made


def find_layer(description: ModelDescription, name: str) -> Layer:
    """Returns the layer that `name` selects: a layer, a stage, or "last", as in `Client.project`.

    Raises:
        CannotContinue: there is no such layer.
    """
    layers = description.layers
    for layer in layers:
        if layer.name == name:
            return layer
    stage = layers[-1].stage if name == "last" and layers else name
    within = [layer for layer in layers if layer.stage == stage and stage]
    chosen = [layer for layer in within if layer.kind != "pool"] or within
    if chosen:
        return chosen[-1]
    near = difflib.get_close_matches(name, [layer.name for layer in layers], n=1)
    hint = f"did you mean {near[0]}?" if near else "`zfserve info` lists the layers"
    raise CannotContinue(f"{description.model.name} has no layer {name!r}; {hint}")


def find_maps(text: str | None, layer: Layer) -> tuple[int, ...]:
    """Returns the maps that a user chose, such as "0-15,40", sorted. None means all maps of the layer.

    Raises:
        CannotContinue: the text is no such choice, or the layer lacks a map.
    """
    if text is None:
        return tuple(range(layer.channels))
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise CannotContinue(f"--maps {text!r} is not like 0-15,40; name maps from 0 to {layer.channels - 1}")
        end = int(last) if dash else int(first)
        if end >= layer.channels or end < int(first):
            raise CannotContinue(f"{layer.name} has the maps 0 to {layer.channels - 1}, and not {part.strip()}")
        chosen.update(range(int(first), end + 1))
    return tuple(sorted(chosen))
