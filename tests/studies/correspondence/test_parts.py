"""Tests how parts are read, masked and drawn at random."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from zfserve.results import Box
from zfserve_studies.correspondence.parts import PartsUnusable, PhotoParts, masked, random_boxes, read_parts

PHOTOS = [Path("a/one.jpg"), Path("two.jpg")]
SIZES = [(64, 32), (64, 32)]


def read(tmp_path: Path, document: Any) -> list[PhotoParts]:
    file = tmp_path / "parts.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_parts(file, PHOTOS, SIZES)


def test_parts_come_by_path_or_by_name_in_one_order(tmp_path: Path) -> None:
    one = {"object": [0, 0, 40, 30], "nose": [1, 2, 3, 4], "eye": [5, 6, 8, 9]}
    two = {"eye": [0, 0, 1, 1], "nose": [60, 28, 64, 32]}
    assert read(tmp_path, {"a/one.jpg": one, "two.jpg": two}) == [
        PhotoParts({"nose": Box(1, 2, 3, 4), "eye": Box(5, 6, 8, 9)}, Box(0, 0, 40, 30)),
        PhotoParts({"nose": Box(60, 28, 64, 32), "eye": Box(0, 0, 1, 1)}, Box(0, 0, 64, 32)),
    ]
    assert [*read(tmp_path, {"one.jpg": one, "two.jpg": two})[1].parts] == ["nose", "eye"]


NOSE = {"nose": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{", "is no JSON file"),
        ([], "is no JSON object; write"),
        ({"one.jpg": NOSE}, "has no parts for two.jpg; add them under this name"),
        ({"one.jpg": NOSE, "two.jpg": {"object": [0, 0, 9, 9]}}, "has no part for two.jpg"),
        ({"one.jpg": NOSE, "two.jpg": {"eye": [1, 2, 3, 4]}}, "do not have the same parts: eye, nose"),
        ({"one.jpg": {"nose": [1, 2, 3, 33]}}, "'nose' of one.jpg lies outside the photo, which has 64 x 32 pixels"),
        ({"one.jpg": {"nose": [-1, 2, 3, 4]}}, "is empty or begins outside the photo"),
        ({"one.jpg": {"nose": [3, 2, 3, 4]}}, "is empty or begins outside the photo"),
        ({"one.jpg": {"nose": [1, 2, 3.5, 4]}}, "in whole pixels"),
        ({"one.jpg": {"nose": "left"}}, "in whole pixels"),
        ({"one.jpg": {"nose": [0, 0, 9, 9], "object": [0, 0, 8, 9]}}, "'nose' of one.jpg is larger than the object"),
    ],
)
def test_parts_that_cannot_be_used_are_told_in_one_sentence(tmp_path: Path, document: Any, sentence: str) -> None:
    with pytest.raises(PartsUnusable) as refused:
        read(tmp_path, document)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PartsUnusable, match=r"nothing\.json cannot be read: No such file or directory"):
        read_parts(tmp_path / "nothing.json", PHOTOS, SIZES)


def test_only_the_box_is_masked() -> None:
    copy = masked(Image.new("RGB", (4, 4), (255, 0, 0)), Box(1, 1, 3, 2))
    grey = [(x, y) for y in range(4) for x in range(4) if copy.getpixel((x, y)) == (128, 128, 128)]
    assert grey == [(1, 1), (2, 1)]
    assert copy.getpixel((0, 0)) == (255, 0, 0)


def test_random_boxes_have_the_sizes_of_the_parts_and_lie_in_the_object() -> None:
    parts = [PhotoParts({"a": Box(0, 0, 3, 2), "b": Box(0, 0, 10, 10)}, Box(5, 6, 15, 16))] * 2
    boxes = random_boxes(parts, 400, seed=1)
    assert boxes == random_boxes(parts, 400, seed=1)
    assert boxes != random_boxes(parts, 400, seed=2)
    for of_photo in boxes:
        assert [(box.right - box.left, box.bottom - box.top) for box in of_photo] == [(3, 2), (10, 10)] * 200
        assert all(box.left >= 5 and box.top >= 6 and box.right <= 15 and box.bottom <= 16 for box in of_photo)
    assert {box.left for box in boxes[0][::2]} == set(range(5, 13))  # every place is possible, the last one too
