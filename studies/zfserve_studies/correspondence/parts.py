"""Reads which parts of photos are masked, and draws random boxes of the same sizes."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from zfserve.results import Box

OBJECT = "object"
"""The name of the box of the whole object in the file of parts. Random boxes lie in it."""

FILL = (128, 128, 128)
"""The colour of a masked part, RGB, in the photo as it was sent. The paper does not state it."""


class PartsUnusable(Exception):
    """The parts cannot be used. The message says why and what to do."""


@dataclass(frozen=True)
class PhotoParts:
    """Holds the boxes of one photo, in pixels of the upright photo as it was sent.

    Attributes:
        parts: the box of each part, by the name of the part.
        whole: the box of the object.
    """

    parts: dict[str, Box]
    whole: Box


def read_parts(file: Path, photos: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> list[PhotoParts]:
    """Returns the parts of each photo.

    Args:
        file: a JSON file, `{"photo.jpg": {"object": [left, top, right, bottom], "nose": [...]}}`. A photo stands under
            its path as it was given, or under its file name. Without "object" the object is the whole photo.
        photos: the photos.
        sizes: the width and the height of each upright photo.

    Raises:
        PartsUnusable: the file cannot be read, lacks a photo or a part, or a box lies outside its photo or object.
    """
    try:
        document = json.loads(file.read_text())
    except OSError as error:
        raise PartsUnusable(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise PartsUnusable(f"{file} is no JSON file: {error}") from error
    if not isinstance(document, dict):
        raise PartsUnusable(f'{file} is no JSON object; write {{"photo.jpg": {{"nose": [left, top, right, bottom]}}}}')
    found = [_of_photo(document, photo, size, file) for photo, size in zip(photos, sizes, strict=True)]
    names = [*found[0].parts]
    for photo, each in zip(photos, found, strict=True):
        if differing := sorted({*names} ^ {*each.parts}):
            raise PartsUnusable(
                f"{file}: {photos[0].name} and {photo.name} do not have the same parts: {', '.join(differing)}"
            )
    return [PhotoParts({name: each.parts[name] for name in names}, each.whole) for each in found]


def random_boxes(parts: Sequence[PhotoParts], count: int, seed: int) -> list[list[Box]]:
    """Returns random boxes for each photo: box k has the size of part k, counted round, and lies within the object.

    Args:
        parts: the parts of each photo.
        count: the number of boxes for each photo.
        seed: the seed. Equal seeds give equal boxes.
    """
    # Seeds made of whole numbers are alike in every release of Python, as `randrange` is for them.
    generator = random.Random(seed)
    drawn = []
    for each in parts:
        boxes = [*each.parts.values()]
        drawn.append([_random_box(boxes[at % len(boxes)], each.whole, generator) for at in range(count)])
    return drawn


def masked(photo: Image.Image, box: Box) -> Image.Image:
    """Returns a copy of an RGB photo in which the box has the colour `FILL`."""
    copy = photo.copy()
    ImageDraw.Draw(copy).rectangle((box.left, box.top, box.right - 1, box.bottom - 1), fill=FILL)
    return copy


def _random_box(size: Box, whole: Box, generator: random.Random) -> Box:
    width, height = size.right - size.left, size.bottom - size.top
    left = generator.randrange(whole.left, whole.right - width + 1)
    top = generator.randrange(whole.top, whole.bottom - height + 1)
    return Box(left, top, left + width, top + height)


def _of_photo(document: dict[str, Any], photo: Path, size: tuple[int, int], file: Path) -> PhotoParts:
    entry = document.get(str(photo), document.get(photo.name))
    if not isinstance(entry, dict):
        raise PartsUnusable(f"{file} has no parts for {photo.name}; add them under this name")
    boxes = {name: _box(value, f"{file}: {name!r} of {photo.name}") for name, value in entry.items()}
    whole = boxes.pop(OBJECT, Box(0, 0, *size))
    if not boxes:
        raise PartsUnusable(f"{file} has no part for {photo.name}; add one beside {OBJECT!r}")
    for name, box in {OBJECT: whole, **boxes}.items():
        if box.right > size[0] or box.bottom > size[1]:
            raise PartsUnusable(
                f"{file}: {name!r} of {photo.name} lies outside the photo, which has {size[0]} x {size[1]} pixels"
            )
        if box.right - box.left > whole.right - whole.left or box.bottom - box.top > whole.bottom - whole.top:
            raise PartsUnusable(f"{file}: {name!r} of {photo.name} is larger than the object")
    return PhotoParts(boxes, whole)


def _box(value: Any, what: str) -> Box:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(type(each) is int for each in numbers):
        raise PartsUnusable(f"{what} is not [left, top, right, bottom] in whole pixels")
    box = Box(*numbers)
    if not (0 <= box.left < box.right and 0 <= box.top < box.bottom):
        raise PartsUnusable(f"{what} is empty or begins outside the photo; write [left, top, right, bottom]")
    return box
